"""Stochastic depth."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """While training, leaves a residual branch out for some samples of a batch (Huang et al., 2016, arXiv:1603.09382).

    The other samples' branches are scaled up, so that the expected sum stays the same.

    Args:
        drop_prob: share of the samples without the branch.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if self.drop_prob == 0 or not self.training:
            return branch
        keep = 1 - self.drop_prob
        scale = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(keep)
        return branch * (scale / keep if keep > 0 else scale)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:g}"
