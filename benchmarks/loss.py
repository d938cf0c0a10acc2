"""The loss over the whole vocabulary: all logits at a time, and a chunk of tokens at a time.

    python -m benchmarks.loss [--tokens 2048] [--vocabulary 59457] [--width 768] [--dtype float32] [--frozen]

Prints a table: seconds and peak memory of output layer, label-smoothed loss and backward pass, on random features and
targets without padding. --frozen leaves the token table without a gradient, as the captioning recipes do. Each side
runs in a process of its own, since peak memory is a property of a process; what the inputs take is left out.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.candidates import memory
from criterions.linear_cross_entropy import linear_cross_entropy
from criterions.losses import LossSums, label_smoothed_cross_entropy

ROWS = 32  # of the batch
OPTIONS: dict[str, Any] = dict(pad=1, eos=2, epsilon=0.1)


def plain(features: Tensor, weight: Tensor, target: Tensor) -> LossSums:
    """All logits (B, T, V), then their softmax."""
    return label_smoothed_cross_entropy(F.linear(features, weight), target, **OPTIONS)


def chunked(features: Tensor, weight: Tensor, target: Tensor) -> LossSums:
    """What the registered criterion calls."""
    return linear_cross_entropy(features, weight, target, **OPTIONS)


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], LossSums]] = {"plain": plain, "chunked": chunked}


def measure(args: argparse.Namespace) -> None:
    """Prints one side's figures as JSON."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    features = torch.randn(ROWS, args.tokens // ROWS, args.width).to(dtype).requires_grad_()
    weight = torch.randn(args.vocabulary, args.width).mul_(0.02).to(dtype).requires_grad_(not args.frozen)
    target = torch.randint(4, args.vocabulary, features.shape[:2])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is used now (Linux)
    before, seconds = memory("VmRSS"), []
    for _ in range(args.repeats):
        features.grad = weight.grad = None
        start = time.perf_counter()
        sums = SIDES[args.side](features, weight, target)
        sums.loss.backward()
        seconds.append(time.perf_counter() - start)
    norms = [x.grad.double().norm().item() for x in (features, weight) if x.grad is not None]
    figures = [sums.loss.item(), *norms]
    print(json.dumps({"seconds": min(seconds), "megabytes": memory("VmHWM") - before, "figures": figures}))


def main() -> None:
    """Runs both sides, checks that loss and gradients agree and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help=f"target tokens, {ROWS} rows of them")
    parser.add_argument("--vocabulary", type=int, default=59457, help="ids")
    parser.add_argument("--width", type=int, default=768, help="model width")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of features and table")
    parser.add_argument("--frozen", action="store_true", help="the token table gets no gradient")
    parser.add_argument("--repeats", type=int, default=2, help="runs; the fastest counts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--side", choices=SIDES, help="measure one side only and print JSON")
    args = parser.parse_args()
    if args.side:
        measure(args)
        return
    results = {}
    for side in SIDES:
        command = [sys.executable, "-m", "benchmarks.loss", *sys.argv[1:], "--side", side]
        results[side] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    figures = [torch.tensor(result["figures"]) for result in results.values()]
    torch.testing.assert_close(*figures, rtol=1e-4 if args.dtype == "float32" else 1e-2, atol=0)
    table = "frozen table" if args.frozen else "trained table"
    sizes = f"{args.tokens} tokens, {args.vocabulary} ids, width {args.width}"
    print(f"{sizes}, {args.dtype}, {table}, {args.threads} threads\n")
    print("| logits | seconds | peak memory (MB) | plain / this, seconds | memory |")
    print("|---|---|---|---|---|")
    for side, result in results.items():
        ratios = [results["plain"][key] / result[key] for key in ("seconds", "megabytes")]
        print(f"| {side} | {result['seconds']:.2f} | {result['megabytes']:.0f} | {ratios[0]:.2f} | {ratios[1]:.1f} |")


if __name__ == "__main__":
    main()
