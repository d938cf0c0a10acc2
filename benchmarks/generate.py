"""Time of beam-5 captioning as a multiple of one encoder forward; prints a markdown table.

    python benchmarks/generate.py [--arch ofa_base] [--size 224] [--repeats 3]

Random weights; end of sentence is forbidden for 16 tokens, so that every search runs its full length.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository's root

from models.generation import GenerationConfig, generate
from models.ofa import OFA, OFAConfig

IMAGES, BEAM, TOKENS = 8, 5, 16
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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = OFA(OFAConfig.from_arch(args.arch)).eval()
    inputs: dict[str, Any] = {
        "src_tokens": torch.tensor([PROMPT] * IMAGES),
        "patch_images": torch.randn(IMAGES, 3, args.size, args.size),
    }
    config = GenerationConfig(beam=BEAM, min_len=TOKENS, max_len_b=TOKENS, no_repeat_ngram_size=3)
    with torch.no_grad():
        encoder = fastest(lambda: model.encode(**inputs), args.repeats)
    search = fastest(lambda: generate(model, inputs, config), args.repeats)
    print(f"{args.arch}, {IMAGES} images of {args.size} px, beam {BEAM}, {TOKENS} tokens, {args.threads} CPU threads\n")
    print("| | seconds | encoder passes | original |\n|---|---|---|---|")
    print(f"| encoder forward | {encoder:.2f} | 1.0 | 1.0 |")
    print(f"| captioning, encoder included | {search:.2f} | {search / encoder:.2f} | {ORIGINAL_RATIO} |")


if __name__ == "__main__":
    main()
