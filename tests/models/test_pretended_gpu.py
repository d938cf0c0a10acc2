"""On a pretended GPU (`tests/pretended_gpu.py`), whose numbers are real: the CPU's results, and no mix of devices."""

import copy
import random
from typing import Any

import pytest
import torch
from fairseq.dataclass.configs import EMAConfig
from PIL import Image

from models.clip import CLIP
from models.generation import CandidateTrie, GenerationConfig, generate, rank_candidates, ranking
from models.ofa import OFA, OFAConfig
from models.vqgan import VQGAN
from ofa_module.engine.optimizers import Average
from ofa_module.nonfinite import NonFiniteGuard
from tests.criterions import test_scst as scst
from tests.models.test_clip import released_weights
from tests.pretended_gpu import pretended_gpu, to_gpu
from tests.tasks.image_gen_world import VQGAN_SIZES

SOURCES = torch.tensor([[0, 40, 51, 62, 2], [0, 73, 2, 1, 1]])
ANSWERS = [[30 + i, 31 + j][: 1 + (i + j) % 2] for i in range(8) for j in range(5)]
HALF = dict(rtol=0.05, atol=0.05)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def model() -> OFA:
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in dict(embed_dim=32, ffn_embed_dim=32, layers=1, attention_heads=2).items()}  # fmt: skip
    sizes |= dict(vocab_size=90, code_image_size=32, image_bucket_size=8)
    positions = dict(max_source_positions=64, max_target_positions=64)
    model = OFA(OFAConfig.from_arch("ofa_demo", **sizes, **positions)).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def both(
    model: Any, images: torch.Tensor | None, use: Any, sources: torch.Tensor = SOURCES
) -> tuple[Any, Any, dict[str, int]]:
    """What `use(model, sources, images)` gives on the CPU and on the pretended GPU, and the latter's waits."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        expected = use(model, sources, images)
        with pretended_gpu() as gpu:
            moved, other = None if images is None else images.to("cuda:0"), to_gpu(copied)
            gpu.waits.clear()
            actual = use(other, sources.to("cuda:0"), moved)
    return expected, actual, dict(gpu.waits)


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.device.type == "cuda"
    with pretended_gpu():
        return tensor.cpu()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("top_k", [2, None])
def test_ranking(model: OFA, top_k: int | None, dtype: torch.dtype) -> None:
    def rank(model: OFA, sources: torch.Tensor, images: torch.Tensor | None) -> Any:
        enc, trie = model.encode(sources, images), CandidateTrie(ANSWERS)
        given = [list(range(0, len(ANSWERS), 2)), list(range(1, len(ANSWERS)))]
        rankings = [rank_candidates(model, enc, trie, prompts, top_k) for prompts in (None, [[0, 44], [0]])]
        return [*rankings, rank_candidates([model, model], [enc, enc], trie, None, top_k, allowed=given)]

    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected, actual, _ = both(copy.deepcopy(model).to(dtype), images, rank)
    for one, other in zip(expected, actual, strict=True):
        assert other.scores.dtype == torch.float32
        if dtype == torch.float32:  # half precision is rounded in other places: attention has no fused kernel here
            assert torch.equal(on_cpu(other.indices), one.indices)
        torch.testing.assert_close(on_cpu(other.scores), one.scores, **({} if dtype == torch.float32 else HALF))


def test_a_round_of_ranking_waits_once(model: OFA, monkeypatch: pytest.MonkeyPatch) -> None:
    """127 waits before, for these questions."""
    rng = random.Random(0)
    trie = CandidateTrie([[rng.randrange(5, 85) for _ in range(rng.randint(1, 5))] for _ in range(400)])
    rounds, expand = [], ranking._BestFirst._expand
    monkeypatch.setattr(ranking._BestFirst, "_expand", lambda *given: (rounds.append(1), expand(*given)))
    questions = torch.arange(240).view(40, 6) % 75 + 5

    def rank(model: OFA, sources: torch.Tensor, images: torch.Tensor | None) -> Any:
        return rank_candidates(model, model.encode(sources), trie, None, top_k=1)

    for _ in range(2):  # the trie is moved once
        rounds.clear()
        expected, actual, waits = both(model, None, rank, questions)
        assert torch.equal(on_cpu(actual.indices), expected.indices)
    assert len(rounds) > 4 and sum(waits.values()) <= len(rounds) / 2 + 5  # rounds of the CPU's too
    assert not {"nonzero", "index", "_unique2"} & waits.keys()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_captions_and_codes(model: OFA, dtype: torch.dtype) -> None:
    def answer(model: OFA, sources: torch.Tensor, images: torch.Tensor | None) -> list[list[int]]:
        configs = [GenerationConfig(beam=3, max_len_b=6), GenerationConfig(beam=2, max_len_b=16, gen_code=True)]
        inputs = {"src_tokens": sources, "patch_images": images}
        found = [generate(model, inputs, config) for config in configs]
        return [hypothesis.tokens.tolist() for search in found for sample in search for hypothesis in sample]

    expected, actual, waits = both(copy.deepcopy(model).to(dtype), torch.ones(2, 3, 48, 48, dtype=dtype), answer)
    assert not {"nonzero", "index", "_unique2"} & waits.keys()
    assert actual == expected if dtype == torch.float32 else [*map(len, actual)] == [*map(len, expected)]


def test_clip(tmp_path: Any) -> None:
    torch.save(released_weights(), tmp_path / "clip.pt")
    clip = CLIP.load(tmp_path / "clip.pt")
    images, texts = [Image.new("RGB", (40, 30), color) for color in ("red", "blue", "green")], ["red", "a blue two"]
    expected = clip.similarity(images, texts)
    with pretended_gpu():
        other = CLIP(to_gpu(copy.deepcopy(clip.model)), clip.tokenizer)
        assert other.device.type == "cuda" and other.image_features(images).device.type == "cuda"
        actual = other.similarity(images, texts)
    torch.testing.assert_close(actual, expected)


def test_image_codes() -> None:
    torch.manual_seed(0)
    vqgan = VQGAN(VQGAN_SIZES).eval()

    def draw(model: VQGAN, sources: torch.Tensor, images: torch.Tensor | None) -> list[torch.Tensor]:
        codes = model.encode(images)
        return [codes, model.decode(codes)]

    expected, actual, waits = both(vqgan, torch.rand(2, 3, 32, 32), draw)
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(on_cpu(other), one)
    assert waits == {"_local_scalar_dense": 1}  # whether all codes exist


@pytest.mark.parametrize("in_float32", [False, True])
def test_the_moving_average(model: OFA, in_float32: bool) -> None:
    def average(model: OFA, sources: torch.Tensor, images: torch.Tensor | None) -> list[torch.Tensor]:
        ema = Average(model, EMAConfig(store_ema=True, ema_decay=0.9, ema_fp32=in_float32))
        for parameter in model.parameters():
            parameter.add_(1.0)
        ema.step(model, 3)
        return list(ema.get_model().state_dict().values())

    expected, actual, waits = both(copy.deepcopy(model), None, average)
    for one, other in zip(expected, actual, strict=True):
        assert torch.equal(on_cpu(other), one)
    assert not waits


def test_the_guard_against_losses_that_are_not_finite(model: OFA, tmp_path: Any) -> None:
    def watch(model: OFA, sources: torch.Tensor, images: torch.Tensor | None) -> list[torch.Tensor]:
        criterion = torch.nn.Module()
        criterion.forward = lambda loss: (loss, 1, {})  # type: ignore[method-assign]
        model.train()
        guard = NonFiniteGuard(criterion, model, str(tmp_path), 3)
        statistics = [buffer.clone() for buffer in model.encoder.embed_images.buffers()]
        guard.begin()
        with torch.enable_grad():
            for loss in (torch.nan, 1.0, torch.inf):
                criterion(sources.new_zeros((), dtype=torch.float32) + loss)
        model.encode(sources, images)
        guard.undo()
        after = list(model.encoder.embed_images.buffers())
        return [*(a - b for a, b in zip(after, statistics, strict=True)), guard.bad_losses()]

    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    _, actual, waits = both(copy.deepcopy(model), images, watch)
    *changes, bad = map(on_cpu, actual)
    assert not any(change.any() for change in changes) and bad == 2
    assert waits.keys() <= {"_local_scalar_dense"}  # whether anything is padding


@torch.no_grad()
def test_self_critical_training() -> None:
    _, _, model, criterion, sample = scst.make(scst.BEAMS)
    expected = [criterion(model.eval(), sample, update_num=1)[0]]
    with pretended_gpu():
        moved = {**sample, "target": sample["target"].to("cuda:0")}
        moved["net_input"] = {name: value.to("cuda:0") for name, value in sample["net_input"].items()}
        loss, _, logged = criterion(to_gpu(model).eval(), moved, update_num=1)
        assert loss.device.type == "cuda" and logged["ntokens"] > 0
        expected.append(loss.cpu())
    torch.testing.assert_close(*expected)


def test_a_mix_of_devices_is_noticed(model: OFA) -> None:
    with torch.no_grad(), pretended_gpu():
        moved = to_gpu(copy.deepcopy(model))
        with pytest.raises(RuntimeError, match="device"):
            moved.encode(SOURCES)
        enc = moved.encode(SOURCES.to("cuda:0"))
        with pytest.raises(RuntimeError, match="device"):
            moved.decode(SOURCES, enc)
