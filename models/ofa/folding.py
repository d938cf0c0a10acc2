"""Batch norms of the image trunk folded into the convolutions before them, for inference.

A folded model says of itself what it was: `state_dict` has the names and values of before, so nothing folded is ever
saved. It cannot be trained, nor take other weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.ofa.resnet import FrozenBatchNorm2d, ResNet
from utils.errors import UserError

REFUSAL = (
    "A model prepared for inference can neither be trained nor take other weights: use the one that load_model returns."
)


class InferenceOnly(nn.Module):
    """A module in the place of another, for inference alone.

    Attributes:
        original: what the other had in its state dict, moved and cast as the module's own tensors; None if it is gone.
    """

    original: dict[str, Tensor] | None

    def train(self, mode: bool = True) -> "InferenceOnly":
        """Raises UserError for training."""
        if mode:
            raise UserError(REFUSAL)
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> "InferenceOnly":
        if self.original is not None:
            self.original = {name: fn(value) for name, value in self.original.items()}
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.original is None:
            raise UserError("A model with int8 weights cannot be saved: save the one that load_model returns.")
        destination.update({prefix + name: value for name, value in self.original.items()})

    def _load_from_state_dict(self, *_: Any) -> None:
        raise UserError(REFUSAL)


class FoldedConv2d(InferenceOnly, nn.Conv2d):
    """A convolution whose weights hold the batch norm after it."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        sizes: dict[str, Any] = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding")}
        nn.Conv2d.__init__(self, conv.in_channels, conv.out_channels, device="meta", **sizes)
        weight, bias = _fold(conv.weight, norm)
        self.weight, self.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        self.original = dict(conv.state_dict())
        self.training = False

    def plain(self) -> nn.Conv2d:
        """An ordinary convolution with the same weights."""
        sizes: dict[str, Any] = {name: getattr(self, name) for name in ("kernel_size", "stride", "padding")}
        conv = nn.Conv2d(self.in_channels, self.out_channels, device="meta", **sizes).eval()
        conv.weight, conv.bias = self.weight, self.bias
        return conv


class FoldedNorm(InferenceOnly, nn.Identity):
    """What is left of the batch norm."""

    def __init__(self, norm: nn.Module) -> None:
        nn.Identity.__init__(self)
        self.original = dict(norm.state_dict())
        self.training = False

    def plain(self) -> nn.Identity:
        """An ordinary module that does nothing."""
        return nn.Identity()


def fold_batch_norms(trunk: ResNet) -> None:
    """Folds all batch norms of a trunk in eval mode, in place."""
    for parent in list(trunk.modules()):
        children, folded = list(parent.named_children()), []
        for (conv_name, conv), (norm_name, norm) in zip(children, children[1:], strict=False):
            if type(conv) is nn.Conv2d and isinstance(norm, NORMS):
                folded += [(conv_name, FoldedConv2d(conv, norm)), (norm_name, FoldedNorm(norm))]
        for name, module in folded:
            setattr(parent, name, module)


def refuse_change(model: nn.Module) -> None:
    """Raises UserError for a model with parts that are for inference, before any part of it is changed."""
    if any(isinstance(module, InferenceOnly) for module in model.modules()):
        raise UserError(REFUSAL)


NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


@torch.no_grad()
def _fold(weight: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Convolution weight (C', C, k, k) -> weight and bias (C',) with the norm in them, computed in float64."""
    wide = [x.detach().cpu().double() for x in (weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    kernel, gain, bias, mean, variance = wide
    scale = gain * (variance + norm.eps).rsqrt()
    kernel, bias = kernel * scale[:, None, None, None], bias - mean * scale
    return kernel.to(weight.device, weight.dtype), bias.to(weight.device, weight.dtype)
