"""Captions of 64 images: one call with all of them against one call for each.

    python -m benchmarks.predictor [--arch ofa_base] [--size 224] [--pictures 64] [--batch 16] [--dtype bfloat16]
    python -m benchmarks.predictor --checkpoint caption_base_best.pt    # a trained model instead of a random one

Prints seconds of both, in all and an image, how much of it the encoder takes, their ratio, and how high it could be.
Weights are random without --checkpoint: captions then have whatever length the search gives them, up to 16 tokens.
Decoding images is left out, they are arrays.

What bounds the ratio on a CPU is arithmetic. Work that a batch shares is the reading of weights: in a step of the
decoder one image has 5 rows (beams), for which each weight is read from memory and used 5 times; with 16 images it
is used 80 times. In the encoder one image of 224 pixels has about 200 rows already, and the convolutions of the
trunk have more: two cores compute then rather than wait for memory, and a batch has nothing left to save. "at most" is
the ratio that would be reached if the call with all images did its products and convolutions as fast as one large
matrix product in the same number format, and nothing else took time. On a GPU, or with so small a model as ofa_demo,
calls one by one are bound by starting operations instead, and the ratio is higher.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.ofa import OFA, OFAConfig
from models.predictor import OFAPredictor
from models.weights import save_model

SIDE = 2048  # of the matrices whose product shows what the machine can do
PROMPT = [0, 99, 473, 5, 2274, 6190, 116, 2]  # as long as that of captions


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of a call's matrix products and convolutions."""
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return int(counter.get_total_flops())


def product_speed(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    matrix = torch.randn(SIDE, SIDE).to(dtype)
    return 2 * SIDE**3 / fastest(lambda: matrix @ matrix, 5)


def load(args: argparse.Namespace) -> OFAPredictor:
    """The checkpoint, or a random model of the size."""
    if args.checkpoint:
        return OFAPredictor.load(args.checkpoint, "cpu", dtype=args.dtype, batch_size=args.batch)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        save_model(OFA(OFAConfig.from_arch(args.arch)), path)
        return OFAPredictor.load(path, "cpu", dtype=args.dtype, batch_size=args.batch, patch_image_size=args.size)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.predictor", description="Captions, together and one by one.")
    parser.add_argument("--arch", default="ofa_base", help="size of the random model (default %(default)s)")
    parser.add_argument("--checkpoint", help="a trained model instead")
    parser.add_argument("--size", type=int, default=224, help="side of its images in pixels (default %(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default %(default)s)")
    parser.add_argument("--pictures", type=int, default=64, help="how many (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images computed at once (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="of each side, the fastest counts (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    predictor = load(args)
    model, side = predictor.model, predictor.shared.patch_image_size
    images = list(np.random.default_rng(0).integers(0, 256, (args.pictures, side, side, 3), dtype=np.uint8))
    few = min(args.batch, args.pictures)

    def encode(count: int) -> Callable[[], object]:
        pixels = torch.zeros(count, 3, side, side, dtype=predictor.dtype)
        return lambda: model.encode(torch.tensor([PROMPT] * count) % len(predictor.vocab), pixels)

    with torch.inference_mode():
        predictor.caption(images[0])  # to warm up
        together = fastest(lambda: predictor.caption(images), args.repeats)
        alone = fastest(lambda: [predictor.caption(image) for image in images], args.repeats)
        encoder_alone = fastest(encode(1), max(3, args.repeats))
        encoder_together = fastest(encode(few), max(2, args.repeats)) / few
    work = operations(lambda: predictor.caption(images[:few])) / few
    speed = product_speed(predictor.dtype)

    print(f"{args.pictures} images of {side} pixels, {args.dtype}, {args.threads} threads, batches of {args.batch}")
    print("              seconds  an image  of it encoder  10^9 operations a second")
    for name, seconds, part in (("one by one", alone, encoder_alone), ("together", together, encoder_together)):
        each = seconds / len(images)
        print(f"{name:12} {seconds:8.2f} {each:10.4f} {part:8.4f} ({part / each:4.0%}) {work / each / 1e9:16.1f}")
    print(f"ratio {alone / together:.2f}; at most {alone / len(images) * speed / work:.2f}", end=", ")
    print(
        f"since an image needs {work / 1e9:.2f} x 10^9 operations and a large product does {speed / 1e9:.1f} a second"
    )


if __name__ == "__main__":
    main()
