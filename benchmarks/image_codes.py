"""Seconds per token of a 1,024-code image as it grows; prints a markdown table.

    python -m benchmarks.image_codes [--arch ofa_base] [--samples 8] [--tokens 1024] [--threads 2]

Random weights, one prompt, top-k 256. A step lasts from one call of the model to the next, so choosing the token is
part of it; a figure is the median of the 51 steps around a position.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from models.generation import GenerationConfig, generate
from models.ofa import OFA, OFAConfig

AROUND = 25
CODES = "50265,58457"  # ids of the 8,192 image codes
PROMPT = [0, 99, 16, 5, 1498, 2274, 116, 2]


def step_times(model: OFA, inputs: dict[str, Any], config: GenerationConfig) -> list[float]:
    """Seconds of each step of one generation."""
    starts: list[float] = []
    step = model.step

    def timed(*args: Any, **kwargs: Any) -> Any:
        starts.append(time.perf_counter())
        return step(*args, **kwargs)

    model.step = timed  # type: ignore[method-assign]
    (hypotheses,) = generate(model, inputs, config)
    assert all(len(hypothesis.tokens) == config.min_len + 1 for hypothesis in hypotheses)
    return [after - before for before, after in zip(starts, starts[1:], strict=False)]


def main() -> None:
    """Generates once and prints what a token costs along the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ofa_base", help="model size")
    parser.add_argument("--samples", type=int, default=8, help="images of the prompt")
    parser.add_argument("--tokens", type=int, default=1024, help="codes of an image")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = OFA(OFAConfig.from_arch(args.arch, code_image_size=256)).eval()
    length = dict(min_len=args.tokens, max_len_b=args.tokens)
    config = GenerationConfig(
        beam=args.samples, sampling=True, sampling_topk=256, gen_code=True, constraint_range=CODES, **length
    )
    seconds = step_times(model, {"src_tokens": torch.tensor([PROMPT])}, config)
    print(f"{args.arch}, {args.samples} images of one prompt, {args.tokens} codes, {args.threads} CPU threads\n")
    print("| at token | ms per step | ms per token | of the first |\n|---|---|---|---|")
    first = 0.0
    for position in (100, *range(250, args.tokens, 250)):
        cost = 1000 * statistics.median(seconds[max(0, position - AROUND) : position + AROUND + 1])
        first = first or cost
        print(f"| {position} | {cost:.1f} | {cost / args.samples:.2f} | {cost / first:.2f} |")
    print(f"\nall {len(seconds)} steps: {sum(seconds):.1f} s")


if __name__ == "__main__":
    main()
