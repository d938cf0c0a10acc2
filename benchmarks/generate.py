"""Time of beam-5 captioning: as a multiple of one encoder forward, and as a share of the rate of one matrix product.

    python benchmarks/generate.py [--arch ofa_base] [--size 224] [--repeats 3] [--images 8]

Each number format: seconds of the encoder and of captioning, operations that they take (products and convolutions, as
PyTorch counts them), and what share of the rate of a product of 2,048 x 2,048 matrices, measured between them, that is.
Random weights; end of sentence is forbidden for 16 tokens, so that every search runs its full length.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository's root

from models.generation import GenerationConfig, generate
from models.ofa import OFA, OFAConfig
from models.ofa.inference import prepare_for_inference

BEAM, TOKENS = 5, 16
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Begin of sentence, " what does the image describe?", end of sentence.
PROMPT = [0, 99, 473, 5, 2274, 6190, 116, 2]
# Beam-5 captioning over its own encoder forward in the original implementation, same setting, on two CPU cores.
ORIGINAL_RATIO = 4.3


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ofa_base", help="model size")
    parser.add_argument("--size", type=int, default=224, help="image side (pixels)")
    parser.add_argument("--repeats", type=int, default=3, help="runs; the fastest counts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--images", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    inputs: dict[str, Any] = {
        "src_tokens": torch.tensor([PROMPT] * args.images),
        "patch_images": torch.randn(args.images, 3, args.size, args.size),
    }
    config = GenerationConfig(beam=BEAM, min_len=TOKENS, max_len_b=TOKENS, no_repeat_ngram_size=3)
    print(
        f"{args.arch}, {args.images} images of {args.size} px, beam {BEAM}, {TOKENS} tokens, {args.threads} threads\n"
    )
    print("| | seconds | encoder passes | TFLOP | TFLOP/s of a product | share |\n|---|---|---|---|---|---|")
    for name, dtype in FORMATS.items():
        model = prepare_for_inference(OFA(OFAConfig.from_arch(args.arch)).eval(), dtype)
        given = {**inputs, "patch_images": inputs["patch_images"].to(dtype)}
        sides: dict[str, Callable[[], object]] = {
            "encoder": partial(model.encode, **given),
            "captions": partial(generate, model, given, config),
        }
        with torch.no_grad():
            peak = max(product_rate(dtype) for _ in range(2))
            seconds = {side: fastest(call, args.repeats) for side, call in sides.items()}
            peak = max(peak, product_rate(dtype))
            for side, call in sides.items():
                passes, work = seconds[side] / seconds["encoder"], operations(call)
                share = work / seconds[side] / peak
                print(
                    f"| {side}, {name} | {seconds[side]:.2f} | {passes:.2f} | {work:.2f} | {peak:.2f} | {share:.0%} |"
                )
    print(f"\nThe original's captions take {ORIGINAL_RATIO} of its encoder passes (float32).")


def product_rate(dtype: torch.dtype, side: int = 2048) -> float:
    """TFLOP/s of a product of square matrices."""
    left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    return 2 * side**3 / fastest(lambda: left @ right, 5) / 1e12


def operations(call: Callable[[], object]) -> float:
    """TFLOP of the products of a call; fused attention, which the counter does not know on a CPU, is taken apart."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops() / 1e12


if __name__ == "__main__":
    main()
