"""Image trunk: the first three stages of a bottleneck ResNet, with the parameter names of torchvision and timm.

The blocks are written out: importing either library takes longer than everything else that the model needs.
"""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.ofa.config import RESNET_BLOCKS, OFAConfig
from models.ofa.drop_path import DropPath
from models.ofa.recompute import run_blocks
from utils.checkpoint import load_checkpoint

logger = logging.getLogger(__name__)

STRIDE = 16
COUNTER = "num_batches_tracked"  # of an ordinary batch norm
CLASSIFIER = ("layer4.", "fc.")  # what ImageNet models of torchvision and timm have beyond the trunk


class FrozenBatchNorm2d(nn.Module):
    """Batch norm of C channels whose statistics and affine map are buffers: nothing of it is trained."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + COUNTER, None)  # a batch norm that was trained counts its batches
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, R, R') -> (B, C, R, R')."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Bottleneck(nn.Module):
    """Residual block: a narrow 3 x 3 convolution between two 1 x 1 ones (He et al., 2016).

    Args:
        channels: width of the input; the output's is 4 * `planes`.
        planes: width of the 3 x 3 convolution, which carries the stride. downsample: what the shortcut passes.
        drop_path: drop path rate of the residual branch.
    """

    def __init__(
        self,
        channels: int,
        planes: int,
        stride: int,
        downsample: nn.Module | None,
        norm: Callable[[int], nn.Module],
        drop_path: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, kernel_size=1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, kernel_size=1, bias=False)
        self.bn3 = norm(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, R, R') -> (B, 4 * planes, R / stride, R' / stride), rounded up."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.drop_path(self.bn3(self.conv3(branch)))
        branch += x if self.downsample is None else self.downsample(x)
        return self.relu(branch)


class ResNet(nn.Module):
    """Pixels (B, 3, R, R') -> features (B, 1024, ceil(R / 16), ceil(R' / 16)); no fourth stage, no pooling."""

    channels = 1024

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        norm = _norm_layer(config)
        self.recompute = config.checkpoint_trunk
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        blocks, rate = RESNET_BLOCKS[config.resnet_type], config.resnet_drop_path_rate
        self.layer1 = _stage(64, 64, blocks[0], 1, norm, rate)
        self.layer2 = _stage(256, 128, blocks[1], 2, norm, rate)
        self.layer3 = _stage(512, 256, blocks[2], 2, norm, rate)
        self.reset_parameters()
        if config.resnet_model_path is not None:
            advice = "name the weights of a ResNet with bottleneck blocks, and its --resnet-type"
            load_trunk(self, config.resnet_model_path, CLASSIFIER, advice)

    def reset_parameters(self) -> None:
        """Kaiming normal (fan out) convolutions; batch norms keep weight 1, bias 0, mean 0, variance 1."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return run_blocks([*self.layer1, *self.layer2, *self.layer3], x, self.recompute)

    @staticmethod
    def grid(height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the feature map of an image: each of the four halvings rounds up."""
        return math.ceil(height / STRIDE), math.ceil(width / STRIDE)


def load_trunk(trunk: nn.Module, path: str, beyond: tuple[str, ...], advice: str) -> None:
    """Takes the weights of a trunk, or of a model whose entries that begin with `beyond` are not part of it.

    Raises ValueError, which ends in `advice`, for others.
    """
    weights, loaded = trunk.state_dict(), dict(load_checkpoint(path)["model"])
    for name in list(loaded):
        if name.startswith(beyond) or (name.endswith(COUNTER) and name not in weights):
            del loaded[name]
    # Files of before 2018 and frozen batch norms have no counters.
    unlike = [name for name in weights if name not in loaded and not name.endswith(COUNTER)]
    unlike += [name for name, value in loaded.items() if name not in weights or weights[name].shape != value.shape]
    if unlike:
        raise ValueError(f"--resnet-model-path {path} does not fit the image trunk (first at {unlike[0]}): {advice}.")
    trunk.load_state_dict({**weights, **loaded})
    logger.info("image trunk: %d entries of %s", len(loaded), path)


def _norm_layer(config: OFAConfig) -> Callable[[int], nn.Module]:
    if config.sync_bn:
        return partial(nn.SyncBatchNorm, eps=1e-3)
    return FrozenBatchNorm2d if config.freeze_resnet else nn.BatchNorm2d


def _stage(
    channels: int, planes: int, blocks: int, stride: int, norm: Callable[[int], nn.Module], drop_path: float
) -> nn.Sequential:
    """Bottleneck blocks; the first carries the stride, drop path grows linearly from 0 to `drop_path`."""
    layers = []
    for i in range(blocks):
        downsample = None
        if i == 0:
            shortcut = nn.Conv2d(channels, 4 * planes, kernel_size=1, stride=stride, bias=False)
            downsample = nn.Sequential(shortcut, norm(4 * planes))
        rate = drop_path * i / max(blocks - 1, 1)
        width, step = (channels, stride) if i == 0 else (4 * planes, 1)
        layers.append(Bottleneck(width, planes, step, downsample, norm, rate))
    return nn.Sequential(*layers)
