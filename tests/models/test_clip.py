"""CLIP on random weights in OpenAI's layout: both kinds of file, features by the formulas, texts, ranking."""

import logging
import math
import sys
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from models.clip import CLIP
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # OpenAI's file is a TorchScript archive
WIDTH, LAYERS, JOINT, SIDE, PATCH = 64, 2, 32, 32, 16
CUT = "longer texts are cut"


def block(prefix: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.in_proj_bias": (3 * WIDTH,)}
    for name, rows, columns in (("attn.out_proj", 1, 1), ("mlp.c_fc", 4, 1), ("mlp.c_proj", 1, 4)):
        shapes |= {f"{name}.weight": (rows * WIDTH, columns * WIDTH), f"{name}.bias": (rows * WIDTH,)}
    shapes |= {f"{norm}.{kind}": (WIDTH,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def released_weights() -> dict[str, torch.Tensor]:
    """Names of ViT-B-16.pt, narrow."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": ((SIDE // PATCH) ** 2 + 1, WIDTH),
        "visual.proj": (WIDTH, JOINT),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "token_embedding.weight": (49408, WIDTH),
        "positional_embedding": (77, WIDTH),
        "text_projection": (WIDTH, JOINT),
        "logit_scale": (),
    }
    for norm in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        shapes |= {f"{norm}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    for layer in range(LAYERS):
        shapes |= block(f"visual.transformer.resblocks.{layer}") | block(f"transformer.resblocks.{layer}")
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}
    scalars = {"input_resolution": SIDE, "context_length": 77, "vocab_size": 49408}
    return {name: t.half().float() for name, t in state.items()} | {n: torch.tensor(v) for n, v in scalars.items()}


def torchscript(state: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """An archive with this state dict, as OpenAI's file is one."""
    root = nn.Module()
    for name, tensor in state.items():
        module = root
        *folders, leaf = name.split(".")
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, nn.Module())
            module = module.get_submodule(folder)
        module.register_buffer(leaf, tensor)
    return torch.jit.script(root)


@pytest.fixture(scope="module")
def weights():
    return released_weights()


@pytest.fixture(scope="module")
def clip(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "ViT-B-16.pt"
    torch.save(dict(weights), path)
    return CLIP.load(path, batch_size=2)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((32, 32), (40, 64), (90, 33))]


def attention(x, state, prefix, causal):
    """(L, C) -> (L, C), one head of 64."""
    q, k, v = (x @ state[f"{prefix}.attn.in_proj_weight"].T + state[f"{prefix}.attn.in_proj_bias"]).chunk(3, dim=-1)
    scores = q @ k.T / math.sqrt(WIDTH)
    if causal:
        scores = scores + torch.full_like(scores, float("-inf")).triu(1)
    return F.linear(scores.softmax(-1) @ v, *pair(state, f"{prefix}.attn.out_proj"))


def pair(state, name):
    return state[f"{name}.weight"], state[f"{name}.bias"]


def transformer(x, state, prefix, causal):
    for layer in range(LAYERS):
        name = f"{prefix}.{layer}"
        x = x + attention(F.layer_norm(x, (WIDTH,), *pair(state, f"{name}.ln_1")), state, name, causal)
        h = F.linear(F.layer_norm(x, (WIDTH,), *pair(state, f"{name}.ln_2")), *pair(state, f"{name}.mlp.c_fc"))
        x = x + F.linear(h * torch.sigmoid(1.702 * h), *pair(state, f"{name}.mlp.c_proj"))
    return x


def image_feature(pixels, state):
    patches = F.conv2d(pixels[None], state["visual.conv1.weight"], stride=PATCH)[0].flatten(1).T
    x = torch.cat([state["visual.class_embedding"][None], patches]) + state["visual.positional_embedding"]
    x = F.layer_norm(x, (WIDTH,), *pair(state, "visual.ln_pre"))
    x = transformer(x, state, "visual.transformer.resblocks", causal=False)
    return F.normalize(F.layer_norm(x[0], (WIDTH,), *pair(state, "visual.ln_post")) @ state["visual.proj"], dim=0)


def text_feature(ids, state):
    x = transformer(
        state["token_embedding.weight"][ids] + state["positional_embedding"],
        state,
        "transformer.resblocks",
        causal=True,
    )
    x = F.layer_norm(x, (WIDTH,), *pair(state, "ln_final"))
    return F.normalize(x[ids.argmax()] @ state["text_projection"], dim=0)


def test_features_follow_the_formulas(clip, weights, images):
    features = clip.image_features(images)
    expected = torch.stack([image_feature(clip.preprocess(image), weights) for image in images])
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)
    texts = ["a red seven", "Two  cats &amp; a dog's bone 42!"]
    ids = clip.tokenize(texts)
    expected_texts = torch.stack([text_feature(row, weights) for row in ids])
    torch.testing.assert_close(clip.text_features(texts), expected_texts, atol=1e-4, rtol=0)
    torch.testing.assert_close(clip.similarity(images, texts), expected @ expected_texts.T, atol=1e-4, rtol=0)


def test_the_archive_gives_the_same_model(clip, weights, images, tmp_path):
    torch.jit.save(torchscript(weights), tmp_path / "ViT-B-16.pt")
    loaded = CLIP.load(tmp_path / "ViT-B-16.pt")
    torch.testing.assert_close(loaded.image_features(images), clip.image_features(images))
    torch.testing.assert_close(loaded.text_features(["a", "b"]), clip.text_features(["a", "b"]))


def test_batches_do_not_matter(clip, images):
    alone = torch.cat([clip.similarity([image], ["a cup"]) for image in images])
    torch.testing.assert_close(clip.similarity(images, ["a cup"]), alone)


def test_pixels_are_resized_cropped_and_normalized(clip):
    image = Image.new("RGBA", (2 * SIDE, SIDE), (0, 0, 0, 255))
    image.paste((255, 255, 255, 255), (SIDE // 2, 0, SIDE // 2 + SIDE, SIDE))
    pixels = clip.preprocess(image)
    assert pixels.shape == (3, SIDE, SIDE)
    white = [(1 - 0.48145466) / 0.26862954, (1 - 0.4578275) / 0.26130258, (1 - 0.40821073) / 0.27577711]
    torch.testing.assert_close(pixels.amin(dim=(1, 2)), torch.tensor(white))


def test_texts_are_cleaned_split_and_padded(clip):
    ids = clip.tokenize(["A  photo of\ta CAT &amp; 12"])
    words = clip.tokenizer.encode("a photo of a cat & 12")
    assert ids.tolist() == [[49406, *words, 49407] + [0] * (75 - len(words))]
    assert len(words) == 8  # single digits


def test_long_texts_are_cut_with_one_warning(weights, clip, caplog):
    fresh = CLIP(clip.model, clip.tokenizer)
    exact, long = "dog " * 75, "cat " * 76
    with caplog.at_level(logging.WARNING, "models.clip"):
        ids = fresh.tokenize([exact])
        assert ids[0, -1] == 49407 and not caplog.records
        ids = fresh.tokenize([exact, long, long])
        fresh.tokenize([long])
    assert ids.shape == (3, 77) and ids[1, -1] == 49407 and ids[1, 1] == ids[1, 75] == clip.tokenizer.encode("cat")[0]
    assert len(caplog.records) == 1 and CUT in caplog.text


def test_images_are_ranked_by_text_or_reference(clip, images):
    ranking = clip.rerank(images, "a red seven")
    scores = clip.similarity(images, ["a red seven"])[:, 0]
    assert ranking.scores.tolist() == sorted(scores.tolist(), reverse=True)
    torch.testing.assert_close(scores[ranking.indices], ranking.scores)
    own = clip.rerank(images, images[1])
    assert own.indices[0] == 1 and own.scores[0].item() == pytest.approx(1, abs=1e-5)
    same = clip.rerank([images[0]] * 2, "a cup")
    assert same.indices.tolist() == [0, 1]


def test_missing_and_foreign_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="put OpenAI's ViT-B-16.pt there"):
        CLIP.load(tmp_path / "ViT-B-16.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(UserError, match="is damaged or not a checkpoint"):
        CLIP.load(tmp_path / "text.pt")
    with pytest.raises(UserError, match="is not a CLIP model"):
        CLIP.load(tmp_path / "other.pt")


class Payload(nn.Module):
    """Writes a file as soon as `torch.jit.load` restores it."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.target, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.target, self.training = state
        torch.save(torch.zeros(1), self.target)

    def forward(self) -> None:
        pass


def archive_with(weights, path, change):
    """Saves an archive of `weights` and writes it anew with `change(name, data)` of its parts."""
    torchscript(weights).save(path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as whole, zipfile.ZipFile(path, "w") as out:
        for name in whole.namelist():
            if (data := change(name, whole.read(name))) is not None:
                out.writestr(name, data)
    return path


def test_code_of_an_archive_is_never_run(weights, clip, images, tmp_path):
    mine = tmp_path / "mine"
    root = torch.jit.script(Payload(str(mine)))
    root.save(tmp_path / "payload.pt")
    mine.write_bytes(b"precious")
    torch.jit.load(tmp_path / "payload.pt")
    assert mine.read_bytes() != b"precious"  # what it does where it is trusted
    mine.write_bytes(b"precious")
    with pytest.raises(UserError, match="is not a CLIP model"):
        CLIP.load(tmp_path / "payload.pt")
    assert mine.read_bytes() == b"precious"
    evil = b"torch.save(torch.zeros(1), '/nowhere')"
    path = archive_with(weights, tmp_path / "evil.pt", lambda n, d: evil if n.endswith(".py") else d)
    assert torch.equal(CLIP.load(path, batch_size=2).image_features(images), clip.image_features(images))


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n(S'touch gone'\ntR.",
        b"ctorch\nsave\n(S'x'\nS'gone'\ntR.",
        b"c__torch__.x\nX\n)\x81}(X\x01\x00\x00\x00acos\nsystem\nub.",
        b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b.",  # sets an attribute
        b"c__torch__.x\nX\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub.",  # holds itself
        b"I1\n.",
        b"",
        b"((((",
    ],
)
def test_archives_that_ask_for_more_or_make_no_sense(pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = {"a.weight": torch.zeros(2)}
    path = archive_with(weights, tmp_path / "x.pt", lambda n, d: pickled if n.endswith("/data.pkl") else d)
    with pytest.raises(UserError, match="is not a CLIP model|no weights"):
        CLIP.load(path)
    assert not (tmp_path / "gone").exists()


def test_weights_that_repeat_a_number_are_refused_before_they_fill_the_memory(tmp_path):
    huge = {"visual.proj": torch.zeros(2, 2), "token_embedding.weight": torch.zeros(1).expand(10**9, 10**4)}
    torch.save(huge, tmp_path / "plain.pt")
    with pytest.raises(UserError, match="without all of its numbers"):
        CLIP.load(tmp_path / "plain.pt")
    torchscript(huge).save(tmp_path / "archive.pt")
    with pytest.raises(UserError, match="larger than its storage"):
        CLIP.load(tmp_path / "archive.pt")


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "x.pt").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="pip install open_clip_torch"):
        CLIP.load(tmp_path / "x.pt")
