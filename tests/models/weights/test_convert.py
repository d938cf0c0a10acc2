"""Conversions: bit-identical weights, options that go along, tokenizer files of the vocabulary."""

import argparse
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import models.hf  # noqa: F401 (registers OFATokenizer)
import models.weights.convert as convert_module
from data.text import GPT2_DIR
from digits.scene import render
from digits.tasks import TASKS
from models.ofa import OFA, OFAConfig
from models.predictor import OFAPredictor
from models.weights import load_model, model_config
from models.weights.convert import COMPUTED, main
from utils.checkpoint import DamagedCheckpointError, load_checkpoint
from utils.hf_layout import TOKENIZER_FILES

DEMO = Path(__file__).parents[3] / "checkpoints" / "ofa_demo.pt"
TASK = {
    "_name": "caption",
    "patch_image_size": 48,
    "code_dict_size": 0,
    "num_bins": 5,
    "imagenet_default_mean_and_std": True,
}
NETWORK = dict(
    encoder_embed_dim=8, decoder_embed_dim=8, vocab_size=50270, entangle_position_embedding=True, attn_scale_factor=1.0
)


@pytest.fixture(scope="module", params=[torch.float32, torch.float16])
def checkpoint(request):
    """As a training run leaves it: tied names, history, options, in both precisions."""
    model = OFA(OFAConfig.from_arch("ofa_demo", **NETWORK)).to(request.param)
    options = {**vars(model.config), "_name": "ofa_demo", "vocab_size": 59457}
    return {
        "args": None,
        "cfg": {"model": options, "task": TASK, "common": {"seed": 7, "lr": [np.float64(0.5)]}},
        "model": model.state_dict(),
        "optimizer_history": [{"num_updates": 3}],
        "extra_state": {"best": 0.5},
        "note": {"for": "programs that come later"},
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("between", ["folder", "one.safetensors"])
def test_there_and_back(checkpoint, between, tmp_path, capsys):
    source, middle, target = tmp_path / "a.pt", tmp_path / between, tmp_path / "b.pt"
    torch.save(checkpoint, source)
    assert main([str(source), str(middle)]) == 0 == main([str(middle), str(target)])
    back = load_checkpoint(target)
    assert_same(checkpoint["model"], back["model"])
    assert back["cfg"] == checkpoint["cfg"] and back["note"] == checkpoint["note"] and back["args"] is None
    assert back["optimizer_history"][-1]["num_updates"] == 0  # history is left behind
    configs = [model_config(load_checkpoint(path)) for path in (source, middle, target)]
    assert configs[0] == configs[1] == configs[2] and configs[0].attn_scale_factor == 1.0
    assert_same(load_model(source).state_dict(), load_model(middle).state_dict())
    assert f"Wrote {target}." in capsys.readouterr().out


def test_args_of_older_files(checkpoint, tmp_path):
    options = argparse.Namespace(
        arch="ofa_demo", **{**NETWORK, "patch_image_size": 32, "num_bins": 5, "code_dict_size": 0}
    )
    torch.save({**checkpoint, "cfg": None, "args": options}, tmp_path / "a.pt")
    assert (
        main([str(tmp_path / "a.pt"), str(tmp_path / "hf")])
        == 0
        == main([str(tmp_path / "hf"), str(tmp_path / "b.pt")])
    )
    back = load_checkpoint(tmp_path / "b.pt")
    assert back["args"] == options and back["cfg"] is None
    size = json.loads((tmp_path / "hf/preprocessor_config.json").read_text())["size"]
    assert size == {"height": 32, "width": 32}


def test_folder(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "a.pt")
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "hf")]) == 0
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert (config["model_type"], config["d_model"], config["vocab_size"]) == ("ofa", 8, 50270)
    assert config["entangle_position_embedding"] and "disable_entangle" not in config
    ids = json.loads((tmp_path / "hf/vocab.json").read_text(encoding="utf-8"))
    assert sorted(ids.values()) == list(range(50265))
    known = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, ".": 4, "Ġthe": 5, "<|endoftext|>": 50260, "<mask>": 50264}
    assert {token: ids[token] for token in known} == known
    assert (tmp_path / "hf/merges.txt").read_bytes() == (GPT2_DIR / "vocab.bpe").read_bytes()
    assert json.loads((tmp_path / "hf/tokenizer_config.json").read_text())["num_bins"] == 5
    (tmp_path / "hf/merges.txt").write_text("their own")
    assert main([str(tmp_path / "hf"), str(tmp_path / "copy")]) == 0  # a folder's own files go along
    assert (tmp_path / "copy/merges.txt").read_text() == "their own"


def test_published_folder_becomes_a_file(checkpoint, tmp_path):
    """Without options of a run: those of config.json."""
    torch.save(checkpoint, tmp_path / "a.pt")
    main([str(tmp_path / "a.pt"), str(tmp_path / "hf")])
    torch.save(load_file(tmp_path / "hf/model.safetensors"), tmp_path / "hf/pytorch_model.bin")
    (tmp_path / "hf/model.safetensors").unlink()
    assert main([str(tmp_path / "hf"), str(tmp_path / "b.pt")]) == 0
    assert_same(checkpoint["model"], load_checkpoint(tmp_path / "b.pt")["model"])
    assert model_config(load_checkpoint(tmp_path / "b.pt")) == model_config(load_checkpoint(tmp_path / "a.pt"))


def test_without_tokenizer_files(checkpoint, tmp_path, capsys):
    torch.save(checkpoint, tmp_path / "a.pt")
    lines = (GPT2_DIR / "dict.txt").read_text().splitlines()[:100]
    (tmp_path / "dict.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "dict_size").write_text("100")
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "hf"), "--bpe-dir", str(tmp_path)]) == 0
    assert "lacks 50157 of GPT-2's tokens" in capsys.readouterr().out
    assert not any((tmp_path / "hf" / name).exists() for name in TOKENIZER_FILES)


@pytest.mark.parametrize(
    ("target", "task", "message"),
    [("b.bin", TASK, "ends in .pt or .safetensors"), ("hf", {**TASK, "num_bins": 6}, "50271 tokens, the model 50270")],
)
def test_refusals(checkpoint, target, task, message, tmp_path, capsys):
    torch.save({**checkpoint, "cfg": {**checkpoint["cfg"], "task": task}}, tmp_path / "a.pt")
    assert main([str(tmp_path / "a.pt"), str(tmp_path / target)]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_left_of_a_folder_that_cannot_be_made(checkpoint, tmp_path, monkeypatch, capsys):
    torch.save({**checkpoint, "cfg": {**checkpoint["cfg"], "task": {**TASK, "num_bins": 6}}}, tmp_path / "a.pt")
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "new/hf")]) == 2
    (tmp_path / "there").mkdir()
    (tmp_path / "there/config.json").write_text(mine := '{"model_type": "ofa", "mine": 1}')
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "there")]) == 2
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "there/config.json")]) == 2
    torch.save(checkpoint, tmp_path / "a.pt")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module, "write_tensors", full)
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "there")]) == 2
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a.pt", "new", "there", "config.json"]
    assert (tmp_path / "there/config.json").read_text() == mine
    assert capsys.readouterr().err.count("\n") == 4


@pytest.mark.parametrize("name", ["config.json", "merges.txt", "vocab.json", "tokenizer.json", "pytorch_model.bin"])
def test_files_of_another_folder_are_left_as_they_are(name, checkpoint, tmp_path, capsys):
    torch.save(checkpoint, tmp_path / "a.pt")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / name).write_text('{"model_type": "bert"}')
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "there")]) == 2
    assert [path.name for path in (tmp_path / "there").iterdir()] == [name]
    assert (tmp_path / "there" / name).read_text() == '{"model_type": "bert"}'
    assert f"there holds {name} of something other than an OFA model" in capsys.readouterr().err
    assert main([str(tmp_path / "a.pt"), str(tmp_path / ("a" * 300))]) == 2
    assert main(["a" * 300, str(tmp_path / "b")]) == 2


def test_the_demo_checkpoint_as_the_docs_say(tmp_path, capsys):
    """The vocabulary is found by the card, its folder is whole, and the example of docs/huggingface.md works on it."""
    text = (DEMO.parents[1] / "docs" / "huggingface.md").read_text(encoding="utf-8")
    example = text.split("## Using it")[1].split("```python\n")[1].split("```")[0]
    image = render(TASKS["caption"].row(2, 0, seed=1, size=96)[-1])
    image.save(tmp_path / "cat.png")
    predictor = OFAPredictor.load(DEMO, "cpu")
    for options in ([], ["--half"]):
        folder = tmp_path / f"demo{len(options)}"
        assert main([str(DEMO), str(folder), *options]) == 0
        assert "lacks 48262 of GPT-2's tokens: tokenizer.json" in capsys.readouterr().out
        assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0o077 & 0o666 & ~umask()}
        values: dict = {}
        exec(example.replace('"OFA-base"', repr(str(folder))).replace("cat.png", f"{tmp_path}/cat.png"), values)
        said = capsys.readouterr().out
        assert predictor.caption(image).text in said
        for words in (" what does the image describe?", "Hello wörld", " a zebra", ""):
            assert values["processor"].tokenizer(words).input_ids == [0, *predictor.vocab.encode(words), 2]
        assert len(values["processor"].tokenizer) == len(predictor.vocab)
        values["processor"].tokenizer.save_pretrained(tmp_path / "again")
        again = AutoTokenizer.from_pretrained(tmp_path / "again", config=values["model"].config)
        assert again(" a zebra is green").input_ids == [0, *predictor.vocab.encode(" a zebra is green"), 2]
    assert main([str(folder), str(tmp_path / "copy")]) == 0 and (tmp_path / "copy/tokenizer.json").is_file()


def umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_a_folder_without_a_vocabulary_gives_no_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "ofa"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "OFATokenizer"}')
    with pytest.raises(ValueError, match="needs vocab.json and merges.txt"):
        AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("seed", range(6))
def test_an_altered_safetensors_file_of_ours_is_refused(checkpoint, tmp_path, seed):
    torch.save(checkpoint, tmp_path / "a.pt")
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors")]) == 0
    path, rng = tmp_path / "b.safetensors", random.Random(seed)
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[rng.randrange(start, len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="does not match its digest"):
        load_checkpoint(path)
    save_file(load_bytes(bytes(content)), path)  # another program's file has none
    assert load_checkpoint(path)["model"].keys() <= checkpoint["model"].keys()


def test_half(tmp_path, capsys):
    """What is given away is half as big, is read by all that reads checkpoints, and says the same."""
    source, target, again = tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c.pt"
    trained, model = load_checkpoint(DEMO), load_model(DEMO)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # the file has halves already: give its weights more digits
            parameter.mul_(1 + 1e-4 * torch.randn_like(parameter))
    torch.save({**trained, "model": model.state_dict()}, source)
    assert main([str(source), str(target), "--half"]) == 0 and f"Wrote {target}." in capsys.readouterr().out
    halved = load_checkpoint(target)
    assert {x.dtype for x in halved["model"].values() if x.is_floating_point()} == {torch.float16}
    assert any(name.endswith(COMPUTED) for name in model.state_dict())
    assert not any(name.endswith(COMPUTED) for name in halved["model"])
    assert halved["cfg"] == trained["cfg"] and model_config(halved) == model_config(load_checkpoint(source))
    whole_size = sum(4 * parameter.numel() for parameter in model.parameters())  # bytes in float32, without tables
    # Half as big; the token table, large in so small a model, may be there under each of its three names.
    assert 0.49 < target.stat().st_size / whole_size < 0.55 and whole_size < source.stat().st_size
    read = dict(load_model(target).named_parameters())
    assert_same({name: x.half().float() for name, x in model.named_parameters()}, read)
    assert main([str(target), str(again), "--half"]) == 0  # nothing is left to save
    assert_same(halved["model"], load_checkpoint(again)["model"])
    image = render(TASKS["caption"].row(2, 0, seed=1, size=96)[-1])
    whole, half = (OFAPredictor.load(path, device="cpu").caption(image) for path in (source, target))
    assert whole.text == half.text and whole.score == pytest.approx(half.score, rel=0.02)


@pytest.mark.parametrize("target", ["b.pt", "b.safetensors", "hf"])
def test_averaged_weights_are_converted_on_request(checkpoint, tmp_path, capsys, target):
    average = {name: value + 1 for name, value in checkpoint["model"].items() if value.is_floating_point()}
    average = {**checkpoint["model"], **average}
    torch.save({**checkpoint, "extra_state": {"ema": average}}, tmp_path / "a.pt")
    for flags, weights in (([], checkpoint["model"]), (["--ema"], average)):
        assert main([str(tmp_path / "a.pt"), str(tmp_path / target), *flags]) == 0
        assert ("is left out: pass --ema" in capsys.readouterr().out) == (not flags)
        name = "encoder.layer_norm.weight"
        assert torch.equal(load_checkpoint(tmp_path / target)["model"][name], weights[name])
    torch.save(checkpoint, tmp_path / "plain.pt")
    assert main([str(tmp_path / "plain.pt"), str(tmp_path / target), "--ema"]) == 2
    assert "plain.pt holds no running average of the weights" in capsys.readouterr().err
