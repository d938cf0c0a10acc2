"""Attention with one shared bias against the plain formula with a bias per sample, S = 980, base size.

    python -m benchmarks.attend [--batch 4] [--repeat 3]

Prints a table: seconds and peak memory of each, and ratios. Each side runs in a process of its own, since peak
memory is a property of a process.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor

from models.ofa.attention import attend, fold_padding

H, S, D = 12, 980, 64
PADDED = 8  # text positions that the last sample pads


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v (B, H, S, D), bias (1, H, S, S), padding (B, S)."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(batch, H, S, D, generator=generator) for _ in range(3))
    bias = torch.randn(1, H, S, S, generator=generator)
    padding = torch.zeros(batch, S, dtype=torch.bool)
    padding[-1, -PADDED:] = True
    return q * (2 * D) ** -0.5, k, v, bias, padding


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, padding: Tensor) -> Tensor:
    """The formula as written: a bias, scores and weights (B, H, S, S), masked and normalized."""
    scores = q @ k.transpose(-1, -2) + bias.repeat(q.size(0), 1, 1, 1)
    scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    return scores.softmax(-1) @ v


def shared(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, padding: Tensor) -> Tensor:
    """The project's attention: one bias for all samples, padding in an extra key dimension."""
    return attend(q, *fold_padding(k, v, padding), bias)


SIDES = {"plain": plain, "shared": shared}


def measure(side: str, batch: int, repeat: int) -> None:
    """Prints seconds (minimum) and megabytes above the inputs (peak) of one side, and a checksum."""
    torch.set_num_threads(2)
    tensors = inputs(batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    with torch.inference_mode():
        for _ in range(repeat):
            start = time.perf_counter()
            out = SIDES[side](*tensors)
            times.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(min(times), peak, out[:, :, : S - PADDED].double().sum().item())


def main() -> None:
    """Runs both sides and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--side", choices=SIDES)
    args = parser.parse_args()
    if args.side:
        measure(args.side, args.batch, args.repeat)
        return
    figures = {}
    for side in SIDES:
        command = [sys.executable, "-m", "benchmarks.attend", "--side", side, "--batch", str(args.batch)]
        out = subprocess.run(
            [*command, "--repeat", str(args.repeat)], capture_output=True, text=True, check=True
        ).stdout
        figures[side] = [float(x) for x in out.split()]
    assert abs(figures["plain"][2] - figures["shared"][2]) < 1e-2 * abs(figures["plain"][2]) + 1.0
    print(f"| B = {args.batch}, H = {H}, S = {S}, D = {D} | seconds | peak memory (MB) |\n| --- | --- | --- |")
    for side, (seconds, peak, _) in figures.items():
        print(f"| {side} | {seconds:.3f} | {peak:.0f} |")
    (seconds, peak, _), (own_seconds, own_peak, _) = figures["plain"], figures["shared"]
    print(f"| plain / shared | {seconds / own_seconds:.1f} | {peak / own_peak:.1f} |")


if __name__ == "__main__":
    main()
