"""Label-smoothed cross entropy of an output layer whose logits never exist all at once.

A vocabulary-wide softmax over a batch needs its (N, V) logits, log-probabilities and their gradients: gigabytes.
Here a chunk of tokens at a time goes through product, softmax and loss, and its gradients are taken on the spot, so
only the sums over chunks, (N, C) and (V, C), wait for the backward pass.

Letters as in `criterions/losses.py`; C model width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from criterions.losses import (
    LossSums,
    TokenRows,
    check_loss_options,
    counted_tokens,
    kept_tokens,
    other_share,
    restrict_to_range,
    smoothed_loss,
    take_tokens,
    targets_in_range,
    token_weights,
)

CHUNK_ELEMENTS = 2**24  # logits that exist at a time: 64 MB in float32
HALF_SCALE = 64.0  # keeps epsilon / V, the smallest gradients, out of float16's subnormal range


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    pad: int,
    eos: int,
    epsilon: float,
    constraint_range: str | None = None,
    conf: Tensor | None = None,
    ignore_prefix_size: int = 0,
    ignore_eos: bool = False,
    drop_worst_ratio: float = 0.0,
) -> LossSums:
    """`losses.label_smoothed_cross_entropy` of the logits features @ weight.T; only tokens that count are projected.

    Under autocast the product is taken in its precision; softmax and loss are in float32 (float64 stays float64).

    Args:
        features: (B, T, C).
        weight: (V, C).
        target: (B, T) ids; the other options are those of `losses.label_smoothed_cross_entropy`.

    Raises:
        ValueError: an option out of bounds, a target outside the range.
    """
    check_loss_options(epsilon, drop_worst_ratio, ignore_prefix_size, constraint_range)
    positions = counted_tokens(target, pad, eos, ignore_prefix_size, ignore_eos)
    features, columns = take_tokens(features, positions), take_tokens(target, positions)
    ranged = constraint_range is not None
    if constraint_range is not None:
        weight = restrict_to_range(weight.t(), constraint_range).t()
        columns = targets_in_range(columns, constraint_range)
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, weight = features.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():
        features, weight = features.detach(), weight.detach()  # a Function is not told of no_grad
    weights = features.new_ones(()) if conf is None else token_weights(conf, target, positions)
    weights = weights.to(_loss_dtype(features)).expand(len(columns))
    easy = None
    with torch.autocast(device, enabled=False):
        if drop_worst_ratio > 0:
            easy = kept_tokens(_losses(features, weight, columns, weights, epsilon, ranged), drop_worst_ratio)
            features, columns, weights = features[easy], columns[easy], weights[easy]
        loss, nll = _Sum.apply(features, weight, columns, weights, epsilon, ranged)
    return LossSums(loss, nll.sum(), len(columns), nll, easy)


def _loss_dtype(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _chunks(count: int, width: int) -> Iterator[slice]:
    """Slices of count tokens with about CHUNK_ELEMENTS logits each."""
    rows = max(1, CHUNK_ELEMENTS // width)
    return (slice(start, start + rows) for start in range(0, count, rows))


def _rows(features: Tensor, weight: Tensor, target: Tensor, ranged: bool) -> TokenRows:
    """Log-probabilities (n, W) of one chunk's features (n, C)."""
    log_probs = torch.log_softmax(features @ weight.t(), 1, dtype=_loss_dtype(features))
    return TokenRows(log_probs, target, None, ranged)


@torch.no_grad()
def _losses(features: Tensor, weight: Tensor, target: Tensor, weights: Tensor, epsilon: float, ranged: bool) -> Tensor:
    """Losses (N,) alone."""
    losses = [
        smoothed_loss(_rows(features[part], weight, target[part], ranged), epsilon)[0]
        for part in _chunks(len(target), len(weight))
    ]
    return weights * torch.cat(losses) if losses else weights


class _Sum(torch.autograd.Function):
    """Sum of the weighted losses of tokens, and their weighted negative log-likelihoods."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, target: Tensor, weights: Tensor, epsilon: float, ranged: bool
    ) -> tuple[Tensor, Tensor]:
        """Scalar and (N,); features (N, C), weight (W, C), target (N,) columns of W, weights (N,)."""
        grads = [
            torch.zeros(x.shape, dtype=_loss_dtype(x), device=x.device) if needed else None
            for x, needed in zip((features, weight), ctx.needs_input_grad[:2], strict=True)
        ]
        loss, nll = weights.new_zeros(()), torch.empty_like(weights, memory_format=torch.contiguous_format)
        for part in _chunks(len(target), len(weight)):
            inputs = features[part], weight, target[part], weights[part]
            features_grad = None if grads[0] is None else grads[0][part]
            losses, nll[part] = _one_chunk(*inputs, epsilon, ranged, features_grad, grads[1])
            loss += losses.sum()
        ctx.save_for_backward(*grads)
        ctx.dtype = features.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients taken in the forward pass, times the loss's."""
        factor = loss_grad / _scale(ctx.dtype)
        grads = [
            None if grad is None else torch.mul(grad, factor, out=torch.empty_like(grad, dtype=ctx.dtype))
            for grad in ctx.saved_tensors
        ]
        return *grads, None, None, None, None


def _scale(dtype: torch.dtype) -> float:
    return HALF_SCALE if dtype == torch.float16 else 1.0


def _one_chunk(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    weights: Tensor,
    epsilon: float,
    ranged: bool,
    features_grad: Tensor | None,
    weight_grad: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Weighted losses and negative log-likelihoods of n tokens, both (n,).

    Args:
        features_grad: (n, C), filled with the loss's gradient times `_scale`.
        weight_grad: (W, C), to which it is added.
    """
    rows = _rows(features, weight, target, ranged)
    losses, nll = (weights * values for values in smoothed_loss(rows, epsilon))
    if features_grad is None and weight_grad is None:
        return losses, nll
    logits_grad = _logits_grad(rows, epsilon, _scale(features.dtype)).to(features.dtype)
    if features_grad is not None:
        features_grad.copy_(logits_grad @ weight).mul_(weights.unsqueeze(1))
    if weight_grad is not None:
        weighted = (weights.unsqueeze(1) * features).to(features.dtype)
        if weight_grad.dtype == features.dtype:
            weight_grad.addmm_(logits_grad.t(), weighted)
        else:  # sums over chunks need more digits than half precision has
            weight_grad += logits_grad.t() @ weighted
    return losses, nll


def _logits_grad(rows: TokenRows, epsilon: float, scale: float) -> Tensor:
    """Gradient (n, W) of the unweighted losses (n,), times scale; takes the memory of rows.log_probs."""
    share = other_share(epsilon, rows.log_probs.size(1), rows.ranged)
    grad = rows.log_probs.exp_()
    if share:
        grad.sub_(share)
    grad.scatter_add_(1, rows.target.unsqueeze(1), grad.new_full((len(grad), 1), share + epsilon - 1))
    return grad if scale == 1 else grad.mul_(scale)
