"""Stochastic depth."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """While training, leaves a residual branch out for some samples of a batch (Huang et al., 2016, arXiv:1603.09382).

    The other samples' branches are scaled up, so that the expected sum stays the same.

    Args:
        drop_prob: share of the samples without the branch.

    Attributes:
        keep: 1 - drop_prob as a tensor (1,), where the layer is compiled (see `models.ofa.compiling`); else None.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.keep: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training:
            return branch
        if self.keep is not None:
            scale = torch.ops.ofa.draw_scale(self.keep, len(branch), branch.dtype, branch.device)
        elif self.drop_prob == 0:
            return branch
        else:
            scale = draw_scale(1 - self.drop_prob, branch.new_empty(len(branch)))
        return branch * scale.view(-1, *[1] * (branch.ndim - 1))

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:g}"


def draw_scale(keep: float, scale: Tensor) -> Tensor:
    """Fills scale (B,) with 1 / keep for the samples whose branch is kept, 0 for the others; nothing is drawn for 1."""
    if keep == 1:
        return scale.fill_(1)
    scale.bernoulli_(keep)
    return scale / keep if keep > 0 else scale
