"""Captions of 64 pictures: one call with all of them against one call for each.

    python -m benchmarks.predictor [--arch ofa_base] [--size 224] [--pictures 64] [--batch 16] [--dtype bfloat16]
    python -m benchmarks.predictor --checkpoint caption_base_best.pt    # a trained network instead of a random one

Prints seconds per picture of both, their ratio, and how much of it the image trunk takes. Weights are random without
--checkpoint: captions then have whatever length the search gives them, up to 16 tokens. Decoding pictures is left out,
they are arrays.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from models.ofa import OFA, OFAConfig
from models.predictor import OFAPredictor
from utils.checkpoint import save_model


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def load(args: argparse.Namespace) -> OFAPredictor:
    """The checkpoint, or a random network of the size."""
    if args.checkpoint:
        return OFAPredictor.load(args.checkpoint, "cpu", dtype=args.dtype, batch_size=args.batch)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        save_model(OFA(OFAConfig.from_arch(args.arch)), path)
        return OFAPredictor.load(path, "cpu", dtype=args.dtype, batch_size=args.batch, patch_image_size=args.size)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.predictor", description="Captions, together and one by one.")
    parser.add_argument("--arch", default="ofa_base", help="size of the random network (default %(default)s)")
    parser.add_argument("--checkpoint", help="a trained network instead")
    parser.add_argument("--size", type=int, default=224, help="side of its pictures in pixels (default %(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default %(default)s)")
    parser.add_argument("--pictures", type=int, default=64, help="how many (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pictures computed at once (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="of each side, the fastest counts (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    predictor = load(args)
    side = predictor.shared.patch_image_size
    pictures = list(np.random.default_rng(0).integers(0, 256, (args.pictures, side, side, 3), dtype=np.uint8))
    pixels = torch.zeros(1, 3, side, side, dtype=predictor.dtype)
    trunk = predictor.model.encoder.embed_images
    with torch.inference_mode():
        together = fastest(lambda: predictor.caption(pictures), args.repeats) / len(pictures)
        alone = fastest(lambda: [predictor.caption(picture) for picture in pictures], args.repeats) / len(pictures)
        trunk_alone = fastest(lambda: trunk(pixels), max(3, args.repeats))
        count = min(args.batch, args.pictures)
        trunk_together = fastest(lambda: trunk(pixels.repeat(count, 1, 1, 1)), args.repeats) / count
    print(f"{args.pictures} pictures of {side} pixels, {args.dtype}, {args.threads} threads, batches of {args.batch}")
    print("             s a picture  of it image trunk")
    for name, whole, part in (("one by one", alone, trunk_alone), ("together", together, trunk_together)):
        print(f"{name:12} {whole:11.4f} {part:10.4f} ({part / whole:.0%})")
    print(f"ratio        {alone / together:11.2f}")


if __name__ == "__main__":
    main()
