"""Where training starts, through train.py: BART and a ResNet, a checkpoint, random weights; what the log says."""

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import train
from models.ofa import OFA, OFAConfig
from models.weights.bart import PADDED_ROWS, TEXT_ROWS

ROOT = Path(__file__).parents[2]
ARGS = [
    "--task=unify_task", "--arch=ofa_demo", "--criterion=adjust_label_smoothed_cross_entropy", "--optimizer=adam",
    "--lr=1e-12", "--lr-scheduler=fixed", "--selected-cols=0,1,2,3,4,5,6,7", "--patch-image-size=32", "--batch-size=1",
    "--bpe-dir=utils/BPE", "--disable-validation", "--cpu", "--scale-attn", "--scale-fc", "--scale-heads",
    "--no-epoch-checkpoints", "--log-format=simple", "--num-workers=0", "--max-update=1",
    "--no-save-optimizer-state", "--largest-short-side=32",
]  # fmt: skip
RESETS = ["--reset-optimizer", "--reset-dataloader", "--reset-meters"]
TABLE = "encoder.embed_tokens.weight"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(ROOT / "tests/golden/tsv/pretrain", tmp_path_factory.mktemp("golden") / "pretrain"))


@pytest.fixture(scope="module")
def bart() -> dict[str, torch.Tensor]:
    """Entries of a BART of the demo's size, as in bart.base/model.pt: half precision, fused projections, one table."""
    torch.manual_seed(5)
    model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=PADDED_ROWS, image_bucket_size=8))
    absent = (
        "image",
        "rel_pos",
        "rp_bucket",
        "pos_",
        "attn_ln",
        "ffn_layernorm",
        "c_attn",
        "type_",
        "patch_",
        "code_",
        "coder.layer_norm.",
        "output_projection",
    )
    state: dict[str, Any] = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
        if not any(part in name for part in absent)
    }
    for name in [name for name in state if name.endswith("self_attn.q_proj.weight")]:
        module = name.removesuffix(".q_proj.weight")
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{module}.{letter}_proj.{kind}") for letter in "qkv"]
            state[f"{module}.in_proj_{kind}"] = torch.cat(parts)
    return state


def run(data: Path, folder: Path, *more: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Log and weights of one update whose step is next to nothing."""
    log, pairs = folder / "log", f"{data}/vision_language_examples.tsv"
    negatives = f"--neg-sample-dir={data}/negative_sample"
    train.main([pairs, *ARGS, negatives, f"--save-dir={folder}", f"--log-file={log}", *more])
    return log.read_text(), torch.load(folder / "checkpoint_last.pt", weights_only=False)["model"]


def test_bart_and_a_resnet(data: Path, bart: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file, trunk = tmp_path / "model.pt", tmp_path / "resnet.pth"
    torch.save({"args": argparse.Namespace(arch="bart_base", dropout=0.1), "model": bart}, file)
    torch.manual_seed(6)
    resnet = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
    torch.save(resnet.state_dict(), trunk)
    log, weights = run(data, tmp_path, f"--restore-file={file}", *RESETS, f"--resnet-model-path={trunk}")
    assert f"Loaded checkpoint {file} " in log
    assert "91 of 197 parameters are the checkpoint's: encoder.embed_tokens.* (1 entry), " in log
    assert "encoder.token_rel_pos_table_list.* (2 entries) kept at their initial values" in log
    assert f"{TABLE} (50265 -> 59457 rows) resized" in log
    assert f"entries of {trunk}" in log and "starts from random weights" not in log
    table = weights[TABLE]
    close: dict[str, Any] = dict(rtol=0.0, atol=1e-4)
    torch.testing.assert_close(table[:TEXT_ROWS], bart[TABLE][:TEXT_ROWS].float(), **close)
    torch.testing.assert_close(table[TEXT_ROWS], bart[TABLE][-1].float(), **close)
    assert table[TEXT_ROWS + 1 :].std().item() == pytest.approx(128**-0.5, rel=0.02)
    fused = bart["decoder.layers.1.self_attn.in_proj_weight"].float().chunk(3)
    torch.testing.assert_close(weights["decoder.layers.1.self_attn.k_proj.weight"], fused[1], **close)
    for name in ("encoder.embed_positions.weight", "decoder.layers.0.encoder_attn.out_proj.weight"):
        torch.testing.assert_close(weights[name], bart[name].float(), **close)
    conv = "layer3.0.conv2.weight"
    torch.testing.assert_close(weights[f"encoder.embed_images.{conv}"], resnet.state_dict()[conv], **close)


def test_a_language_model_alone_leaves_the_trunk_random(
    data: Path, bart: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(bart, tmp_path / "plaintext.pt")
    log, _ = run(data, tmp_path, f"--restore-file={tmp_path}/plaintext.pt", *RESETS)
    assert "The image trunk starts from random weights: --resnet-model-path" in log


def test_continuing_says_so_and_scratch_warns(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    log, before = run(data, first)
    assert "No --restore-file: training starts from random weights." in log
    file = first / "checkpoint_last.pt"
    log, after = run(data, second, f"--restore-file={file}", *RESETS)
    assert f"Loaded checkpoint {file} (epoch 1 @ 0 updates)" in log and "random weights" not in log
    assert "parameters are the checkpoint's" not in log
    torch.testing.assert_close(after[TABLE], before[TABLE], rtol=0.0, atol=1e-6)


def test_a_missing_checkpoint_is_an_error_and_random_weights_have_a_name(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--restore-file=/nowhere/ofa_base.pt", "--restore-file=", f"--restore-file={tmp_path}"):
        with pytest.raises(SystemExit) as caught:
            run(data, tmp_path, flag, *RESETS)
        said = capsys.readouterr().err
        assert caught.value.code == 2 and flag in said and "--restore-file=none" in said
        assert not list(tmp_path.glob("*.pt"))
    with pytest.raises(SystemExit):
        run(data, tmp_path, "--finetune-from-model=/nowhere/ofa_base.pt")
    assert "--finetune-from-model=/nowhere/ofa_base.pt does not exist" in capsys.readouterr().err
    log, _ = run(data, tmp_path, "--restore-file=none", *RESETS)
    assert "training starts from random weights" in log
    log, _ = run(data, tmp_path, "--restore-file=none", "--max-update=2")
    assert f"Loaded checkpoint {tmp_path}/checkpoint_last.pt" in log  # the run of this folder goes on
