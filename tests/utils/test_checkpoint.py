"""Checkpoints of every released layout are read back exactly; damaged and hostile files are refused."""

import argparse
import inspect
import json
import os
import pickle
import re
import resource
import stat
import subprocess
from collections import OrderedDict
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file
from torch import Tensor

from models.ofa import OFA, OFAConfig
from models.weights import load_model, model_config, save_model
from utils import checkpoint as checkpoint_module
from utils.checkpoint import DamagedCheckpointError, load_checkpoint, previous_checkpoint, save_checkpoint
from utils.errors import UserError

SIZES = ["tiny", "medium", "base", "large", "huge"]


def small_config(**options: Any) -> OFAConfig:
    """A model that is built and stored in milliseconds."""
    dims = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("embed_dim", 32), ("layers", 1))}
    small = dict(vocab_size=40, image_bucket_size=8, code_image_size=64)
    return OFAConfig.from_arch("ofa_demo", **{**dims, **small, **options})


@pytest.fixture(scope="module")
def model() -> OFA:
    torch.manual_seed(0)
    return OFA(small_config()).eval()


@torch.no_grad()
def logits(model: OFA) -> Tensor:
    """Of one caption, one text-only sample and one image."""
    generator = torch.Generator().manual_seed(1)
    src, prev = (torch.randint(4, 40, (2, n), generator=generator) for n in (5, 3))
    images = torch.randn(2, 3, 32, 32, generator=generator)
    return model(src, prev, patch_images=images, patch_masks=torch.tensor([True, False]))


def assert_same_model(loaded: OFA, model: OFA) -> None:
    """Same options, same weights: the same outputs (see test_model_round_trip)."""
    assert not loaded.training and loaded.config == model.config
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def namespace(model: OFA, **changes: Any) -> argparse.Namespace:
    """Flat options as fairseq stores them: the model's among all the others."""
    others = dict(arch="ofa_demo", task="caption", data="train.tsv,val.tsv", lr=[1e-5], ema_decay=0.9999, seed=7)
    return argparse.Namespace(**{**asdict(model.config), **others, **changes})


def released(model: OFA) -> dict[str, Any]:
    """A training checkpoint in exactly the layout of the released ones."""
    weights = model.state_dict()
    ema = {name: value * 0.5 if value.is_floating_point() else value for name, value in weights.items()}
    flags = namespace(model, _name="ofa_demo")
    task = {"_name": "caption", "data": "train.tsv", "patch_image_size": 480}
    meter = {"val": torch.tensor(2.5), "sum": np.float64(5.0), "count": np.int64(2), "round": 3}
    metrics = OrderedDict(default=[(20, "loss", "AverageMeter", meter)], train=[])
    iterator = {"version": 2, "epoch": 3, "iterations_in_epoch": 17, "shuffle": True}
    history = {"criterion_name": "Loss", "optimizer_name": "FairseqAdam", "lr_scheduler_state": {"best": None}}
    adam = {"exp_avg": torch.rand(6), "exp_avg_sq": torch.rand(6), "step": 500}
    return {
        "args": None,
        "cfg": {"common": {"seed": 7, "fp16": True}, "model": flags, "task": task, "criterion": {"_name": "loss"}},
        "model": weights,
        "criterion": None,
        "optimizer_history": [{**history, "num_updates": 500}],
        "task_state": {},
        "extra_state": {
            "metrics": metrics,
            "previous_training_time": 12.5,
            "train_iterator": iterator,
            "val_loss": np.float64(1.25),
            "best": np.float32(1.5),
            "ema": ema,
            "ema_fp32_params": {"encoder.layer_norm.weight": torch.ones(32)},
        },
        "last_optimizer_state": {"state": {0: adam}, "param_groups": [{"lr": 1e-5}], "loss_scale": 128.0},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_released_layout(model, tmp_path, zipped):
    torch.save(released(model), tmp_path / "ofa.pt", _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(tmp_path / "ofa.pt")
    assert set(loaded) == set(released(model))
    assert isinstance(loaded["cfg"]["model"], argparse.Namespace) and loaded["cfg"]["model"].lr == [1e-5]
    extra = loaded["extra_state"]
    assert (extra["best"], extra["val_loss"], extra["train_iterator"]["epoch"]) == (1.5, 1.25, 3)
    assert extra["metrics"]["default"][0][3] == {"val": 2.5, "sum": 5.0, "count": 2, "round": 3}
    assert loaded["last_optimizer_state"]["state"][0]["exp_avg"].shape == (6,)
    torch.testing.assert_close(loaded["model"], dict(model.state_dict()), rtol=0, atol=0)
    if zipped:
        assert_same_model(load_model(tmp_path / "ofa.pt"), model)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["numpy1", "numpy2"])
def test_numpy_scalars(tmp_path, module):
    """Of either numpy, read with either."""
    torch.save({"model": {}, "best": np.float64(2.5)}, tmp_path / "ours.pt", _use_new_zipfile_serialization=False)
    theirs, count = re.subn(rb"numpy\._?core\.multiarray", module, (tmp_path / "ours.pt").read_bytes())
    assert count
    (tmp_path / "theirs.pt").write_bytes(theirs)
    assert load_checkpoint(tmp_path / "theirs.pt")["best"] == 2.5


def test_running_average(model, tmp_path):
    content = released(model)
    halves = {name: v.half() if v.is_floating_point() else v for name, v in content["extra_state"]["ema"].items()}
    content["extra_state"]["ema"] = halves  # as a half-precision run stores them
    torch.save(content, tmp_path / "ofa.pt")
    loaded = load_model(tmp_path / "ofa.pt", ema=True)
    expected = (model.encoder.layers[0].fc1.weight * 0.5).half().float()
    assert torch.equal(loaded.encoder.layers[0].fc1.weight, expected)
    del content["extra_state"]["ema"]
    torch.save(content, tmp_path / "plain.pt")
    with pytest.raises(UserError, match="plain.pt holds no running average"):
        load_model(tmp_path / "plain.pt", ema=True)


def test_old_layout_with_args(model, tmp_path):
    old = {**released(model), "args": namespace(model, attn_scale_factor=2)}
    del old["cfg"]
    torch.save(old, tmp_path / "old.pt")
    assert_same_model(load_model(tmp_path / "old.pt"), model)


def test_absent_flags_are_false_and_tensors_win(model):
    flags = argparse.Namespace(arch="ofa_base", dropout=0.1, resnet_model_path="gone.pth", interpolate_position=True)
    config = model_config({"model": model.state_dict(), "args": flags})
    # Not on the command line; the tensors cannot contradict this one, but they do all sizes of ofa_base.
    assert not config.disable_entangle and not config.freeze_resnet
    assert (config.dropout, config.interpolate_position, config.resnet_model_path) == (0.1, True, None)
    assert (config.encoder_embed_dim, config.encoder_layers, config.resnet_type) == (32, 1, "resnet10")
    assert config.scale_attn and config.scale_fc and config.scale_heads and not config.scale_resids
    assert config.add_type_embedding and config.encoder_normalize_before


def test_overrides(model, tmp_path):
    save_model(model, tmp_path / "m.pt")
    assert model_config(load_checkpoint(tmp_path / "m.pt"), {"attn_scale_factor": 1.0}).attn_scale_factor == 1.0
    with pytest.raises(UserError, match="no option droput"):
        load_model(tmp_path / "m.pt", {"droput": 0.1})
    with pytest.raises(UserError, match="--encoder-layers 1"):
        load_model(tmp_path / "m.pt", {"encoder_layers": 2})
    with pytest.raises(UserError, match="m.pt holds a model that cannot be built.*--encoder-attention-heads"):
        load_model(tmp_path / "m.pt", {"encoder_attention_heads": 5})


def test_weights_of_parts_that_an_override_adds_are_reported(model, tmp_path, caplog):
    save_model(model, tmp_path / "m.pt")
    load_model(tmp_path / "m.pt", {"scale_resids": True})
    assert "encoder.layers.*.w_resid (1 entry)" in caplog.text


def hugging_face_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published folder's names, written out from its description."""
    encoder = {"attn_ln": "self_attn_mid_layer_norm", "ffn_layernorm": "ffn_layer_norm"}
    decoder = {
        "self_attn_ln": "self_attn_mid_layer_norm",
        "cross_attn_ln": "cross_attn_mid_layer_norm",
        "encoder_attn": "cross_attn",
        "encoder_attn_layer_norm": "cross_attn_layer_norm",
        "ffn_layernorm": "ffn_layer_norm",
    }
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[3] = (encoder if parts[0] == "encoder" else decoder).get(parts[3], parts[3])
        if parts[1] != "version":
            renamed[".".join(parts)] = value
    return renamed


def write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    """By safetensors' own rule: a tied table is stored once."""
    once = {value.data_ptr(): name for name, value in state.items()}
    save_file({name: value for name, value in state.items() if once[value.data_ptr()] == name}, path)


def write_folder(folder: Path, model: OFA, weights: str, **options: Any) -> Path:
    """A folder in Hugging Face layout."""
    folder.mkdir(exist_ok=True)
    state = hugging_face_names(model.state_dict())
    assert "decoder.layers.0.cross_attn.q_proj.weight" in state
    if weights.endswith(".bin"):
        torch.save(state, folder / weights)
    else:
        write_safetensors(state, folder / weights)
    config = dict(model_type="ofa", d_model=32, encoder_ffn_dim=512, normformer=True, attn_scale_factor=2.0, **options)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors"])
def test_hugging_face_folder(model, tmp_path, weights):
    folder = write_folder(tmp_path / "OFA", model, weights, dropout=0.0)  # the layout's default is 0.1
    assert_same_model(load_model(folder), model)
    assert model_config(load_checkpoint(folder / weights)) == model.config  # without config.json all is inferred
    loaded = load_checkpoint(folder)
    assert "decoder.layers.0.encoder_attn.q_proj.weight" in loaded["model"]
    assert loaded["optimizer_history"][-1]["num_updates"] == 0
    assert loaded["extra_state"]["train_iterator"]["epoch"] == 1
    write_folder(folder, model, weights, resnet_drop_path_rate=0.25, dropout=0.1)
    config = model_config(load_checkpoint(folder))
    assert (config.resnet_drop_path_rate, config.dropout, config.disable_entangle) == (0.25, 0.1, True)


def test_bare_state_dict(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert_same_model(load_model(tmp_path / "weights.pt"), model)
    assert model_config({"model": model.state_dict()}, source="The state dict") == model.config


@pytest.mark.parametrize("size", SIZES)
def test_inference_of_released_sizes(size, golden):
    shapes = golden(f"state_dict_{size}.json")["state_dict"]
    state = {name: torch.empty(shape, device="meta") for name, (shape, _) in shapes.items()}
    assert model_config({"model": state}, source="The state dict") == OFAConfig.from_arch(f"ofa_{size}")


@pytest.mark.parametrize(
    "options",
    [
        dict(scale_attn=False, scale_heads=False),
        dict(scale_fc=False, scale_resids=True, code_layernorm_embedding=False),
        dict(num_images=2, max_source_positions=64, max_target_positions=32, token_bucket_size=64),
        dict(decoder_layers=3, encoder_layers=2, decoder_ffn_embed_dim=64, decoder_attention_heads=2),
        dict(code_image_size=256, image_bucket_size=42, resnet_type="resnet18"),
        dict(add_type_embedding=False, layernorm_embedding=False, patch_layernorm_embedding=False),
        dict(resnet_type="ViT-B/16"),
    ],
)
def test_inference_of_options(options):
    config = small_config(**options)
    with torch.device("meta"):
        state = OFA(config).state_dict()
    assert model_config({"model": state}, source="The state dict") == config


def test_the_public_name_has_the_arguments_of_the_function():
    public, real = (
        inspect.signature(function).parameters.values() for function in (checkpoint_module.load_model, load_model)
    )
    assert [(p.name, p.kind, p.default) for p in public] == [(p.name, p.kind, p.default) for p in real]


def test_inference_refuses_other_models(model):
    language = {name: v for name, v in model.state_dict().items() if "embed_images" not in name}
    with pytest.raises(UserError, match=r"not a complete OFA model \(no image trunk\): start training from it"):
        model_config({"model": language}, source="The state dict")
    with pytest.raises(UserError, match="name an OFA checkpoint"):
        model_config({"model": {"features.0.weight": torch.zeros(3)}}, source="The state dict")
    vit = {**model.state_dict(), "encoder.embed_images.positional_embedding": torch.zeros(197, 768)}
    with pytest.raises(UserError, match="--resnet-type ViT-B/16 of 0 blocks: choose one of .*, ViT-B/16"):
        model_config({"model": vit}, source="The state dict")


class Hostile:
    """Unpickled by an ordinary reader, this calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("form", ["zip", "stream", "pickle"])
@pytest.mark.parametrize("function", [os.system, eval, subprocess.check_call], ids=lambda f: f.__name__)
def test_code_is_never_run(tmp_path, form, function):
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    command: Any = {os.system: f"touch {proof}", eval: f"open({str(proof)!r}, 'w')"}.get(function, ["touch", proof])
    content = {"model": {}, "extra_state": Hostile(function, command)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert not proof.exists()
    message = str(caught.value)
    assert str(path) in message and f"{function.__name__} to be run" in message and "\n" not in message
    if form == "pickle":  # the proof is one: an ordinary reader does run it
        with path.open("rb") as file:
            pickle.load(file).get("extra_state")
        assert proof.exists()


def test_other_classes_are_refused_by_name(tmp_path):
    from omegaconf import OmegaConf

    for value, name in ((OmegaConf.create({"a": 1}), "omegaconf"), (Path("x"), "pathlib"), (np.zeros(3), "numpy")):
        torch.save({"model": {}, "cfg": value}, tmp_path / "c.pt")
        with pytest.raises(UserError, match=f"c.pt asks for {name}"):
            load_checkpoint(tmp_path / "c.pt")


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> dict[str, bytes]:
    """A small checkpoint in each file format."""
    state = {"encoder.weight": torch.arange(5000.0), "decoder.weight": torch.ones(3)}
    path = tmp_path_factory.mktemp("files") / "c.pt"
    contents = {"c.safetensors": save_bytes(state)}
    for name, zipped in (("zip.pt", True), ("stream.pt", False)):
        torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)
        contents[name] = path.read_bytes()
    return contents


@pytest.mark.parametrize("name", ["zip.pt", "stream.pt", "c.safetensors"])
@pytest.mark.parametrize("part", [0, 1, 7, 100, 0.02, 0.5, 0.99, -300, -30, -1])
def test_truncated_file(files, tmp_path, name, part):
    whole = files[name]
    end = int(part * len(whole)) if isinstance(part, float) else part
    (tmp_path / name).write_bytes(whole)
    assert load_checkpoint(tmp_path / name)["model"]["encoder.weight"][-1] == 4999
    (tmp_path / name).write_bytes(whole[:end])
    with pytest.raises(DamagedCheckpointError, match=name) as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("start", [0, 100, 9000])
def test_hole_in_a_file_of_full_size(files, tmp_path, start):
    content = bytearray(files["zip.pt"])
    content[start : start + 4096] = bytes(4096)  # an interrupted download, or a write lost with the power
    (tmp_path / "hole.pt").write_bytes(content)
    for load in (load_checkpoint, load_model):
        with pytest.raises(DamagedCheckpointError, match="hole.pt"):
            load(tmp_path / "hole.pt")


@pytest.mark.parametrize(
    "content", [bytes(5000), b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04"]
)
def test_file_of_another_kind(tmp_path, content):
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="c.pt is damaged or not a checkpoint"):
        load_checkpoint(tmp_path / "c.pt")


def test_wrong_paths_and_contents(tmp_path, model):
    with pytest.raises(UserError, match=r"no checkpoint .*nothing.pt"):
        load_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(UserError, match="folder without config.json"):
        load_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pt")
    torch.save({"epoch": 1}, tmp_path / "dict.pt")
    with pytest.raises(UserError, match="no entry 'model'"):
        load_checkpoint(tmp_path / "dict.pt")
    folder = write_folder(tmp_path / "OFA", model, "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(UserError, match="type 'bart'"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "options",
    [
        # attn_scale_factor, interpolation and entangling leave no trace in the tensors.
        dict(attn_scale_factor=1.0, disable_entangle=False, freeze_resnet=True, num_images=2),
        dict(resnet_type="ViT-B/16"),
    ],
)
def test_model_round_trip(tmp_path, caplog, options):
    torch.manual_seed(3)
    model = OFA(small_config(**options)).eval()
    save_model(model, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt")
    assert_same_model(loaded, model)
    assert not caplog.messages
    assert torch.equal(logits(loaded), logits(model))
    assert {f.name for f in fields(OFAConfig)} < set(load_checkpoint(tmp_path / "m.pt")["cfg"]["model"])


def test_save_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_last.pt"
    save_checkpoint({"model": {"step": 1}}, path)
    unpicklable = {"model": {"step": 2, "weight": torch.zeros(100000)}, "late": lambda: None}
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(unpicklable, path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.os, "fsync", full)
        with pytest.raises(UserError, match="could not be written .No space left"):
            save_checkpoint({"model": {"step": 3}}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="checkpoint_last.pt could not be written .File too large"):
            save_checkpoint({"model": {"weight": torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert load_checkpoint(path)["model"] == {"step": 1}
    (tmp_path / "checkpoint_last.pt.tmp").write_bytes(b"left by a killed process")
    save_checkpoint({"model": {"step": 4}}, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert load_checkpoint(path)["model"] == {"step": 4}


def test_save_syncs_before_renaming_and_respects_umask(tmp_path, monkeypatch):
    path, calls = tmp_path / "c.pt", []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        calls.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(checkpoint_module.os, "fsync", sync)
    monkeypatch.setattr(checkpoint_module.os, "replace", rename)
    old = os.umask(0o022)
    try:
        save_checkpoint({"model": {}}, path)
    finally:
        os.umask(old)
    assert calls == ["file", "rename", "folder"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def training_file(path: Path, updates: int) -> bytes:
    save_checkpoint({"model": {"w": torch.ones(2000)}, "optimizer_history": [{"num_updates": updates}]}, path)
    return path.read_bytes()


def test_previous_checkpoint(tmp_path):
    last = tmp_path / "checkpoint_last.pt"
    last.write_bytes(training_file(last, 900)[:-100])
    assert previous_checkpoint(last) is None
    for name, updates in (("checkpoint2.pt", 400), ("checkpoint_best.pt", 300), ("checkpoint_1_90.pt", 90)):
        training_file(tmp_path / name, updates)
    (tmp_path / "checkpoint_3_800.pt").write_bytes(training_file(last, 800)[:3000])
    changed = bytearray(training_file(tmp_path / "checkpoint_3_700.pt", 700))
    changed[changed.find(bytes.fromhex("0000803f0000803f")) + 2] ^= 1
    (tmp_path / "checkpoint_3_700.pt").write_bytes(changed)
    torch.save({"weights": 1}, tmp_path / "checkpoint_other.pt")
    training_file(tmp_path / "ofa_tiny.pt", 10**6)  # not one of this run
    assert previous_checkpoint(last) == tmp_path / "checkpoint2.pt"
    assert previous_checkpoint(tmp_path / "checkpoint2.pt") == tmp_path / "checkpoint_last.pt"


# What is wrong with an archive -> signature of the record that says it, place in it, bytes.
ZIP_DAMAGE = {
    "a password": (b"PK\x01\x02", 8, b"\x01\x00"),
    "unknown compression": (b"PK\x01\x02", 10, b"\x63\x00"),
    "a name that is no text": (b"PK\x01\x02", 8, b"\x00\x08" + bytes(36) + b"\xff\xfe"),
    "a file marked as a folder": (b"PK\x01\x02", 38, b"\x10"),
    "several disks": (b"PK\x06\x07", 16, b"\x02\x00\x00\x00"),
}


@pytest.mark.parametrize("damage", ZIP_DAMAGE)
def test_damaged_archives_give_way_to_the_previous_checkpoint(damage, tmp_path):
    last = tmp_path / "checkpoint_last.pt"
    training_file(tmp_path / "checkpoint1.pt", 100)
    content = bytearray(training_file(last, 200))
    if damage == "several disks":  # the record stands in archives of more than 4 GB only
        end = content.rfind(b"PK\x05\x06")
        content[end:end] = b"PK\x06\x06" + bytes(52) + b"PK\x06\x07" + bytes(16)
    signature, place, value = ZIP_DAMAGE[damage]
    start = content.rfind(signature) + place
    content[start : start + len(value)] = value
    for file in (last, tmp_path / "checkpoint2.pt"):
        file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="^[^\n]*checkpoint_last.pt is damaged[^\n]*$"):
        load_checkpoint(last)
    assert previous_checkpoint(last) == tmp_path / "checkpoint1.pt"


def test_state_that_fairseq_writes(tmp_path, model):
    from fairseq import checkpoint_utils
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.logging import meters, metrics
    from omegaconf import OmegaConf

    with metrics.aggregate(new_root=True):
        with metrics.aggregate() as valid:  # a name would bring back what other tests logged under it
            metrics.log_scalar("loss", torch.tensor(2.0), 3, round=3)
            metrics.log_scalar("score", np.float64(0.5), np.int64(2), round=4)
            metrics.log_scalar_sum("count", 4)
            metrics.log_speed("wps", 10.0)
            metrics.log_start_time("wall")
            metrics.log_stop_time("wall")
            metrics.log_derived("ppl", lambda m: meters.safe_round(2 ** m["loss"].avg, 2))
        state = OrderedDict(valid=valid.state_dict())
    config = OmegaConf.to_container(OmegaConf.structured(FairseqConfig), resolve=True, enum_to_str=True)
    config["model"] = namespace(model, _name="ofa_demo")
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    content = {"cfg": config, "model": model.state_dict(), "extra_state": {"metrics": state}}
    content["last_optimizer_state"] = optimizer.state_dict()
    checkpoint_utils.torch_persistent_save(content, str(tmp_path / "checkpoint1.pt"))
    loaded = load_checkpoint(tmp_path / "checkpoint1.pt")
    restored = meters.MetersDict()
    restored.load_state_dict(loaded["extra_state"]["metrics"]["valid"])
    assert restored["loss"].avg == 2.0 and restored["score"].avg == 0.5 and restored["count"].sum == 4
    assert loaded["cfg"]["common"] == config["common"]
    assert model_config(loaded) == model.config
