"""Number formats of a run, and model and loss as the one module that is computed in them."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from omegaconf import DictConfig
from torch import Tensor, nn


@dataclass(frozen=True)
class Precision:
    """Number formats of a run.

    Attributes:
        weights: of the model and what it is given. autocast: of the products in it, if another one.
        scaled: whether the loss is scaled up for the backward pass, since float16's smallest numbers are not small.
    """

    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scaled: bool = False

    @classmethod
    def of(cls, cfg: DictConfig) -> Self:
        """What the flags of fairseq's group `common` ask for."""
        if not (cfg.fp16 or cfg.bf16 or cfg.amp):
            return cls()
        dtype = torch.bfloat16 if cfg.bf16 else torch.float16
        whole = cfg.memory_efficient_fp16 or cfg.memory_efficient_bf16
        return cls(dtype if whole else torch.float32, None if whole else dtype, dtype == torch.float16)

    def __str__(self) -> str:
        names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
        return names[self.weights] + (f", products in {names[self.autocast]}" if self.autocast else "")


class Objective(nn.Module):
    """Model and loss as one module, so that data parallelism sees one forward pass whatever the loss does.

    Called as a criterion is; the model it is given must be its own.
    """

    def __init__(self, criterion: nn.Module, model: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.criterion, self.model, self.precision = criterion, model, precision
        self.scale = 1.0

    def forward(self, model: nn.Module, sample: Any, **options: Any) -> tuple[Tensor, Any, dict[str, Any]]:
        """Loss times `scale`, sample size, what to log."""
        dtype, device = self.precision.autocast, next(self.model.parameters()).device.type
        with torch.autocast(device, dtype) if dtype else nullcontext():
            loss, size, logged = self.criterion(model, sample, **options)
        return loss * self.scale if self.scale != 1 else loss, size, logged
