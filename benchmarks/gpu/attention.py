"""Attention with a position bias, forward and backward, the ways it can be done: time and memory of one layer.

    python -m benchmarks.gpu.attention [--device cpu --tiny] [--seconds 0.5]

The bias of a layer is an absolute part (a product of two tables (S, D)) and a relative part (a table's rows looked up
by bucket). "bias" is one (1, H, S, S) tensor made beforehand; "in head dimensions" appends the absolute part's two
tables to queries and keys, so that no (H, S, S) tensor of it exists.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.measure import add_row, begin_table, free, make_parser, measure, peak_gigabytes

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}


def inputs(batch: int, heads: int, length: int, width: int, device: str) -> dict[str, Tensor]:
    """Queries, keys, values; the bias and the two tables of its absolute part."""
    half = torch.bfloat16
    shape = (batch, heads, length, width)
    made = {name: torch.randn(shape, device=device, dtype=half, requires_grad=True) for name in "qkv"}
    made["bias"] = torch.randn(1, heads, length, length, device=device, dtype=half, requires_grad=True)
    made |= {
        n: torch.randn(1, heads, length, width, device=device, dtype=half, requires_grad=True) for n in ("pq", "pk")
    }
    return made


def step(forward: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        out = forward()
        torch.autograd.grad(out.sum(), leaves, allow_unused=True)

    return run


def ways(x: dict[str, Tensor], device: str) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """Name -> forward, tensors that need gradients."""
    q, k, v, bias, pq, pk = (x[name] for name in ("q", "k", "v", "bias", "pq", "pk"))
    scale, leaves = 1 / math.sqrt(q.size(-1)), [q, k, v]
    length = q.size(2)
    aligned = F.pad(bias.detach(), (0, -length % 16))[..., :length].requires_grad_()

    def plain(**options: Any) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=scale, **options)

    def in_heads(mask: Tensor | None = None) -> Tensor:
        wide_q = torch.cat([q, pq.expand_as(q)], -1)
        wide_k = torch.cat([k, pk.expand_as(k)], -1)
        out = F.scaled_dot_product_attention(wide_q, wide_k, F.pad(v, (0, q.size(-1))), attn_mask=mask, scale=scale)
        return out[..., : q.size(-1)]

    found: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
        "no bias": (plain, leaves),
        "bias without gradient": (lambda: plain(attn_mask=bias.detach()), leaves),
        "bias": (lambda: plain(attn_mask=bias), [*leaves, bias]),
        "bias, rows aligned to 16": (lambda: plain(attn_mask=aligned), [*leaves, aligned]),
        "absolute part in head dimensions alone": (in_heads, [*leaves, pq, pk]),
        "absolute part in head dimensions, relative as bias": (lambda: in_heads(bias), [*leaves, pq, pk, bias]),
    }
    if device == "cuda":
        found |= {
            f"bias, {name}": (_on(backend, lambda: plain(attn_mask=bias)), [*leaves, bias])
            for name, backend in BACKENDS.items()
        }
        found["flex, relative looked up in a table"] = _flex(x)
    return found


def _on(backend: Any, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with sdpa_kernel(backend):
            return forward()

    return run


def _flex(x: dict[str, Tensor]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """FlexAttention over wide heads; the relative part is read from the table (H, rows) by the two cells' offset."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v, pq, pk = (x[name] for name in ("q", "k", "v", "pq", "pk"))
    side = 64  # cells a side for which the table has offsets
    rel = torch.randn(q.size(1), (2 * side - 1) ** 2 + 3, device=q.device, dtype=q.dtype, requires_grad=True)
    grid = max(1, math.isqrt(q.size(2)))

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        rows, columns = i // grid - j // grid + side - 1, i % grid - j % grid + side - 1
        return value + rel[h, rows * (2 * side - 1) + columns]

    compiled = torch.compile(flex_attention, dynamic=False)

    def forward() -> Tensor:
        wide_q = torch.cat([q, pq.expand_as(q)], -1)
        wide_k = torch.cat([k, pk.expand_as(k)], -1)
        return compiled(wide_q, wide_k, v, score_mod=score, scale=1 / math.sqrt(q.size(-1)))

    return forward, [q, k, v, pq, pk, rel]


def main() -> None:
    """Measures and prints."""
    args = make_parser(__doc__ or "").parse_args()
    settings = [(2, 2, 40, 16)] if args.tiny else [(32, 12, 930, 64), (8, 16, 2000, 64)]
    for batch, heads, length, width in settings:
        print(f"\nB={batch}, H={heads}, S={length}, D={width}, bfloat16")
        begin_table("way", "forward ms", "forward and backward ms", "peak GB")
        for name, (forward, leaves) in ways(inputs(batch, heads, length, width, args.device), args.device).items():
            run = step(forward, leaves)
            try:
                memory = peak_gigabytes(run, args.device)
                with torch.no_grad():
                    alone = measure(forward, args.device, args.seconds)
                add_row(name, 1000 * alone, 1000 * measure(run, args.device, args.seconds), memory)
            except Exception as error:  # a kernel that the device lacks raises many things
                add_row(name, f"{type(error).__name__}: {error}", "", "")
            free(args.device)


if __name__ == "__main__":
    main()
