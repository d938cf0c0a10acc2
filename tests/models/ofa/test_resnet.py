"""Weights for the image trunk: torchvision's, timm's, old files without counters, and what does not fit."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from models.ofa.config import OFAConfig
from models.ofa.drop_path import DropPath
from models.ofa.resnet import FrozenBatchNorm2d, ResNet


def config(path: Path, **options: Any) -> OFAConfig:
    return OFAConfig.from_arch("ofa_tiny", resnet_model_path=str(path), **options)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("form", ["legacy", "model", "safetensors"])
def test_libraries_name_and_compute_alike(tmp_path: Path, library: str, form: str) -> None:
    torch.manual_seed(0)
    theirs: Any = torchvision.models.resnet50() if library == "torchvision" else timm.create_model("resnet50")
    for name, value in theirs.state_dict().items():
        if "running" in name or "bn" in name and value.is_floating_point():
            torch.nn.init.uniform_(value, 0.5, 1.5)
    state = theirs.state_dict()
    path = tmp_path / ("resnet.safetensors" if form == "safetensors" else "resnet.pth")
    if form == "legacy":  # and of before batch norms counted
        torch.save({k: v for k, v in state.items() if "tracked" not in k}, path, _use_new_zipfile_serialization=False)
    elif form == "model":
        torch.save({"model": state, "epoch": 90}, path)
    else:
        save_file(state, path)
    trunk = ResNet(config(path)).eval().double()
    theirs.layer4 = torch.nn.Identity()
    theirs.eval().double()
    images = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    expected = theirs.maxpool(theirs.bn1(theirs.conv1(images)).relu())
    expected = theirs.layer3(theirs.layer2(theirs.layer1(expected)))
    torch.testing.assert_close(trunk(images), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("drop_prob", [0.0, 0.3, 1.0])
def test_drop_path_draws_as_timm(drop_prob: float, training: bool) -> None:
    branch = torch.randn(64, 5, 3)
    ours, theirs = DropPath(drop_prob).train(training), timm.layers.DropPath(drop_prob).train(training)
    torch.manual_seed(3)
    expected = theirs(branch)
    torch.manual_seed(3)
    assert torch.equal(ours(branch), expected)


@pytest.mark.parametrize("rates", [0.0, 0.4])
def test_training_computes_as_timm(rates: float) -> None:
    torch.manual_seed(0)
    trunk = ResNet(OFAConfig.from_arch("ofa_demo", resnet_drop_path_rate=rates)).train()
    stage = trunk.layer2
    theirs = torch.nn.Sequential()
    for i, block in enumerate(stage):
        shortcut = torch.nn.Sequential(torch.nn.Conv2d(256, 512, 1, 2, bias=False), torch.nn.BatchNorm2d(512))
        path = timm.layers.DropPath(block.drop_path.drop_prob)  # type: ignore[union-attr, arg-type]
        first = {"stride": 2, "downsample": shortcut} if i == 0 else {}
        theirs.append(timm.models.resnet.Bottleneck(512 if i else 256, 128, drop_path=path, **first))  # type: ignore
    theirs.load_state_dict(stage.state_dict())
    results = []
    for model in (stage, theirs.train()):
        torch.manual_seed(5)
        pixels = torch.linspace(-1, 1, 4 * 256 * 7 * 7).view(4, 256, 7, 7).requires_grad_()
        model(pixels).square().sum().backward()
        results.append([pixels.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_frozen_batch_norm_is_torchvisions() -> None:
    torch.manual_seed(0)
    trained = torch.nn.BatchNorm2d(6)
    for value in trained.state_dict().values():
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.5, 1.5)
    ours, theirs = FrozenBatchNorm2d(6), torchvision.ops.FrozenBatchNorm2d(6)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for norm in (ours, theirs):  # a counter of batches is passed over
        norm.load_state_dict(trained.state_dict())
    pixels = torch.randn(2, 6, 4, 3)
    assert torch.equal(ours(pixels), theirs(pixels)) and not list(ours.parameters())


def test_frozen_batch_norm_takes_the_statistics(tmp_path: Path) -> None:
    trunk = ResNet(OFAConfig.from_arch("ofa_demo"))
    trunk.bn1.running_mean.fill_(3.0)  # type: ignore[operator]
    torch.save(trunk.state_dict(), tmp_path / "trunk.pt")
    frozen = ResNet(OFAConfig.from_arch("ofa_demo", resnet_model_path=str(tmp_path / "trunk.pt"), freeze_resnet=True))
    assert "bn1.num_batches_tracked" not in frozen.state_dict()
    assert frozen.state_dict()["bn1.running_mean"].eq(3).all()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    with pytest.raises(ValueError, match="There is no checkpoint .*other.pth"):
        ResNet(config(path))
    state = ResNet(OFAConfig.from_arch("ofa_tiny")).state_dict()
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"does not fit the image trunk \(first at layer3.6.*--resnet-type"):
        ResNet(config(path, resnet_type="resnet101"))
    torch.save(torchvision.models.resnet18().state_dict(), path)
    with pytest.raises(ValueError, match="bottleneck"):
        ResNet(config(path, resnet_type="resnet18"))
    torch.save({**state, "conv1.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="first at conv1.0.weight"):
        ResNet(config(path))
