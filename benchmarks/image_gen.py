"""Seconds per image of text-to-image generation by samples per batch; prints markdown tables.

    python -m benchmarks.image_gen [--arch ofa_base] [--samples 1,4,8] [--side 256] [--threads 2]

Random weights, one prompt, top-k 256; the VQGAN of the released width (f = 8, 8,192 codes) and CLIP ViT-B/16. Decoder
is the sampling of codes, encoder included. The same model without a cache reads its whole sequence again for each
code: it is timed at `--uncached` lengths, a polynomial is fitted to the seconds of a step, and its sum is the estimate.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import open_clip
import torch

from models.clip import CLIP
from models.generation import GenerationConfig, generate
from models.ofa import OFA, OFAConfig
from models.text_to_image import Painter, code_options
from models.vqgan import VQGAN

FIRST, CODES, TOP_K = 50265, 8192, 256
PROMPT = [0, 99, 16, 5, 1498, 2274, 116, 3747, 35, 10, 1275, 3538, 2]
TEXT = "a red bus"
DEGREE = 2  # of a step: attention is quadratic in the length


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and its value."""
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


@torch.no_grad()
def uncached_step(model: OFA, length: int, samples: int) -> float:
    """Seconds of the code after `length` positions, the faster of two: decoder over the sequence, logits, draw."""
    enc = model.encode(torch.tensor([PROMPT]))
    tokens = torch.randint(FIRST, FIRST + CODES, (samples, length))
    masks = torch.ones(samples, dtype=torch.bool)
    ids = torch.arange(FIRST, FIRST + CODES)

    def step() -> torch.Tensor:
        logits = model.project(model.decoder(tokens, enc, masks)[:, -1], ids)
        return logits.topk(TOP_K).values.softmax(-1).multinomial(1)

    step()
    return min(timed(step)[0] for _ in range(2))


def extrapolate(lengths: Sequence[int], seconds: Sequence[float], count: int) -> tuple[float, np.ndarray, float]:
    """Seconds of `count` steps; coefficients of the fitted step, constant first; its largest relative error."""
    fit = np.polynomial.Polynomial.fit(lengths, seconds, DEGREE)
    total = float(fit(np.arange(1, count + 1)).sum())
    error = float(np.abs(fit(np.array(lengths)) / np.array(seconds) - 1).max())
    return total, fit.convert().coef, error


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ofa_base", help="model size")
    parser.add_argument("--samples", default="1,4,8", help="samples of the prompt at once")
    parser.add_argument("--side", type=int, default=256, help="side of the images (pixels)")
    parser.add_argument("--uncached", default="32,64,96,128,192,256", help="lengths to time without a cache")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = OFA(OFAConfig.from_arch(args.arch, code_image_size=args.side)).eval()
    network = open_clip.create_model("ViT-B-16", force_quick_gelu=True).requires_grad_(False).eval()
    clip = CLIP(network, open_clip.SimpleTokenizer())
    painter = Painter(VQGAN().requires_grad_(False).eval(), None, FIRST)
    count = (args.side // 8) ** 2
    lengths = [length for length in map(int, args.uncached.split(",")) if length <= count]
    if len(lengths) <= DEGREE:
        parser.error(f"--uncached needs more than {DEGREE} lengths of up to {count}")
    print(f"{args.arch}, one prompt, {count} codes, top-k {TOP_K}, {args.threads} CPU threads, float32\n")
    print("| samples | s per image | decoder | VQGAN | CLIP | without cache (fitted) | times |")
    print("|---|---|---|---|---|---|---|")
    fits = []
    for samples in map(int, args.samples.split(",")):
        config = GenerationConfig(beam=samples, sampling_topk=TOP_K, **code_options(FIRST, CODES, count))
        inputs = {"src_tokens": torch.tensor([PROMPT])}
        small = GenerationConfig(beam=samples, sampling_topk=TOP_K, **code_options(FIRST, CODES, 16))
        (warm,) = generate(model, inputs, small)
        clip.rerank(painter.draw([hypothesis.tokens for hypothesis in warm]), TEXT)
        decoder, (found,) = timed(partial(generate, model, inputs, config))
        vqgan, images = timed(partial(painter.draw, [hypothesis.tokens for hypothesis in found]))
        choice, _ = timed(partial(clip.rerank, images, TEXT))
        steps = [uncached_step(model, length, samples) for length in lengths]
        total, coefficients, error = extrapolate(lengths, steps, count)
        whole = decoder + vqgan + choice
        shares = " | ".join(f"{100 * part / whole:.0f} %" for part in (decoder, vqgan, choice))
        print(f"| {samples} | {whole / samples:.2f} | {shares} | {total / samples:.1f} s | {total / decoder:.1f} |")
        fits.append((samples, steps, coefficients, error))
    print(f"\nWithout a cache, milliseconds of a step at length n, measured at {lengths}:\n")
    for samples, steps, (a, b, c), error in fits:
        shown = ", ".join(f"{1000 * second:.1f}" for second in steps)
        fitted = f"{1000 * a:.2f} + {1000 * b:.4f} n + {1000 * c:.6f} n^2"
        print(f"- {samples} samples: {shown}; fitted {fitted}, off by up to {100 * error:.0f} %")


if __name__ == "__main__":
    main()
