"""Files from before June 2022, whose table of code positions is one entry shorter: the same model as today's."""

import argparse
import json
from dataclasses import asdict

import pytest
import torch
from omegaconf import OmegaConf

import evaluate
import train
from models.ofa import OFA, OFAConfig
from models.ofa.decoder import code_position_ids
from models.predictor import OFAPredictor
from models.weights import load_model, model_config
from models.weights.convert import main as convert
from models.weights.upgrade import describe
from tests.tasks.image_gen_world import ARGS, COUNT, SIDE, write_world

pytestmark = pytest.mark.slow
TABLE = "decoder.image_position_idx"
TAILS = (768, 769)
OPTIONS = ("cfg", "args", "none")


def small(**options):
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("embed_dim", 16), ("layers", 1))}
    return OFA(OFAConfig.from_arch("ofa_demo", **{**sizes, "vocab_size": 60, **options})).eval()


def store(path, model, tail, options, **task):
    """A file as the original wrote it, with so many entries behind the grid."""
    state, size = dict(model.state_dict()), model.config.code_image_size
    state[TABLE] = state[TABLE][: 1 + (size // 8) ** 2 + tail].clone()
    flags = argparse.Namespace(_name="ofa_demo", arch="ofa_demo", **asdict(model.config))
    content = {
        "cfg": {"cfg": {"model": flags, "task": task}, "args": None},
        "args": {"args": argparse.Namespace(**{**vars(flags), **task}), "cfg": None},
        "none": {"args": None, "cfg": None},
    }[options]
    torch.save({**content, "model": state, "extra_state": {}}, path)
    return path


@torch.no_grad()
def code_logits(model, length):
    """Of image codes at the first and last positions of the grid and of a text."""
    generator = torch.Generator().manual_seed(1)
    src, prev = (torch.randint(4, 60, (2, n), generator=generator) for n in (5, length))
    return model.eval()(src, prev, code_masks=torch.tensor([True, False]))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("size", "entries"), [(128, 1025), (256, 1793)])
def test_load_model(size, entries, tail, options, tmp_path):
    model = small(code_image_size=size)
    loaded = load_model(store(tmp_path / "a.pt", model, tail, options))
    assert loaded.config.code_image_size == size and loaded.state_dict()[TABLE].numel() == entries + 1
    assert torch.equal(code_logits(loaded, 40), code_logits(model, 40))


@pytest.mark.parametrize("tail", TAILS)
def test_every_size_is_told_apart(tail):
    for window in range(1, 43):
        assert describe({TABLE: torch.empty(1 + window**2 + tail)}) == {
            **describe({}),
            "code_image_size": 8 * window,
        }


def test_options_of_the_file_win_and_lengths_that_say_nothing_are_left():
    state = small(code_image_size=32, image_bucket_size=8).state_dict()
    stored = {"cfg": {"model": {"_name": "ofa_demo", "code_image_size": 64}}, "model": state}
    assert model_config(stored).code_image_size == 64
    assert model_config(stored, {"code_image_size": 16}).code_image_size == 16
    state[TABLE] = state[TABLE][:-9]
    assert model_config({"model": state}, source="The state dict").code_image_size == 128  # the default


def test_side_of_images_is_read_off_the_table_that_cannot_grow():
    """Rows of image positions may be fewer than the model has; those of relative positions may not."""
    state = small(image_bucket_size=8, code_image_size=32).state_dict()
    for side in ("encoder", "decoder"):
        state[f"{side}.embed_image_positions.weight"] = state[f"{side}.embed_image_positions.weight"][:20]
    assert model_config({"model": state}, source="The state dict").image_bucket_size == 8


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("target", ["b.pt", "b.safetensors", "folder"])
def test_convert(target, options, tmp_path):
    model = small(code_image_size=64, vocab_size=59457, encoder_embed_dim=8, decoder_embed_dim=8)
    source = store(tmp_path / "a.pt", model, 768, options)
    assert convert([str(source), str(tmp_path / target)]) == 0
    loaded = load_model(tmp_path / target)
    assert loaded.config.code_image_size == 64
    assert torch.equal(loaded.state_dict()[TABLE], code_position_ids(8, 42))
    assert torch.equal(code_logits(loaded, 70), code_logits(model, 70))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with rows and a VQGAN, its flags, and what a training of text-to-image asks for."""
    folder, models = write_world(tmp_path_factory.mktemp("world"))
    flags = [models["vqgan-model-path"], models["vqgan-config-path"], models["clip-model-path"]]
    return folder, flags, train.parse_args([f"{folder}/rows.tsv", *ARGS, *flags])


@pytest.mark.parametrize("options", OPTIONS)
def test_evaluation_draws_the_same_images(options, world, tmp_path):
    folder, flags, cfg = world
    model = small(vocab_size=50265 + 64, code_image_size=SIDE)
    task = OmegaConf.to_container(cfg.task, resolve=True, enum_to_str=True)
    found = []
    for tail in TAILS:
        path = store(tmp_path / f"{tail}.pt", model, tail, options, **{**task, "task": "image_gen"})
        argv = [
            f"{folder}/rows.tsv", f"--path={path}", "--task=image_gen", "--batch-size=2", "--seed=42", "--cpu",
            "--gen-subset=test", "--beam=2", "--sampling-topk=20", "--num-workers=0", "--bpe-dir=utils/BPE",
            f"--results-path={tmp_path}/{tail}",
        ]  # fmt: skip
        if options == "none":
            argv += ["--zero-shot", *flags, *(flag for flag in ARGS if flag.startswith(("--code", "--num-b", "--sel")))]
        evaluate.main(argv)
        found.append(json.loads((tmp_path / f"{tail}/test_predict.json").read_text()))
    assert found[0] == found[1] and len({record["score"] for record in found[0]}) == len(found[0]) > 4


@pytest.mark.parametrize("options", OPTIONS)
def test_predictor_draws_the_same_images(options, world, tmp_path):
    folder, _, _ = world
    model = small(vocab_size=50265 + 64, code_image_size=SIDE)
    images = []
    for tail in TAILS:
        path = store(tmp_path / f"{tail}.pt", model, tail, options, _name="image_gen", code_dict_size=64, num_bins=0)
        given = dict(patch_image_size=32, code_dict_size=64, num_bins=0, bpe_dir="utils/BPE")
        predictor = OFAPredictor.load(path, device="cpu", vqgan=(folder / "last.ckpt", folder / "model.yaml"), **given)
        assert predictor.model.decoder.image_position_idx.numel() == 1 + COUNT + 769
        torch.manual_seed(1)
        images.append(predictor.draw("a cat"))
    assert images[0].size == (SIDE, SIDE) and images[0].tobytes() == images[1].tobytes()
