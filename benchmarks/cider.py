"""CIDEr-D of 320 hypotheses against five references each: ours and pycocoevalcap's, which is CIDEr-D too.

    python -m benchmarks.cider [--images 20000] [--repeats 5]

Prints milliseconds of processor time. "one update" is what an update of stage 2 scores in all: 64 images with a beam of
5; "its 32 calls" scores them two images at a time, as the processes do; "320 images" has one hypothesis each, as in
validation. Nothing is kept from call to call, so a first pass costs what a repeated one does; the column "first" is a
scorer's very first call. Document frequencies are given to both, of the references themselves or of --images others
and these: what the original's scorer spends on counting them is left out.

Captions are made up: an image is ten words, drawn with a preference for frequent ones (word number 9000 u^4, u
uniform), and a caption of it replaces 15 % of them (hypotheses) or 40 % (references).
"""

import argparse
import gc
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer

from metrics.cider import CiderD, NGram, count_documents

WORDS, LENGTH, REFERENCES, HYPOTHESES = 9000, 10, 5, 320
COLUMNS = (
    "320 hypotheses", "images counted", "n-grams", "pycocoevalcap", "ours, first call", "ours, repeated",
    "ratio, first", "ratio, repeated", "largest difference",
)  # fmt: skip
Setting = tuple[list[str], list[list[str]]]  # hypotheses, the references of each


def make_setting(rng: random.Random, images: int, beam: int) -> Setting:
    """`images` x `beam` hypotheses with the references of their images."""

    def word() -> str:
        return f"word{int(WORDS * rng.random() ** 4)}"

    def caption(words: list[str], replaced: float) -> str:
        return " ".join(word() if rng.random() < replaced else old for old in words) + " <eos>"

    hypotheses, references = [], []
    for _ in range(images):
        words = [word() for _ in range(LENGTH)]
        captions = [caption(words, 0.4) for _ in range(REFERENCES)]
        hypotheses += [caption(words, 0.15) for _ in range(beam)]
        references += [captions] * beam
    return hypotheses, references


def original_score(setting: Setting, frequencies: dict[NGram, float], images: int) -> list[float]:
    """pycocoevalcap's scores with document frequencies of `images` images."""

    class Given(CiderScorer):
        # the log of the number of images, which it would take from the references it is scoring
        ref_len = property(lambda self: math.log(images), lambda self, value: None)

    scorer = Given()
    for hypothesis, captions in zip(*setting, strict=True):
        scorer += (hypothesis, captions)
    scorer.document_frequency = frequencies
    return scorer.compute_cider()


def score_in_calls(scorer: CiderD, setting: Setting, size: int) -> np.ndarray:
    """Our scores, `size` hypotheses a call."""
    hypotheses, references = setting
    starts = range(0, len(hypotheses), size)
    return np.concatenate([scorer.score(hypotheses[i : i + size], references[i : i + size])[1] for i in starts])


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of processor time, and what the call returns."""
    gc.disable()  # as timeit does: a collection would visit millions of n-grams
    start = time.thread_time()
    result = call()
    taken = 1000 * (time.thread_time() - start)
    gc.enable()
    return taken, result


def print_row(name: str, setting: Setting, size: int, others: Sequence[list[str]], repeats: int) -> None:
    """Time both sides, check that they agree, print a line."""
    counted, images = count_documents([*others, *setting[1]])
    frequencies: dict[NGram, float] = defaultdict(float, counted)
    scorer = CiderD(frequencies, math.log(images))
    first, scores = timed(lambda: score_in_calls(scorer, setting, size))
    ours = min(timed(lambda: score_in_calls(scorer, setting, size))[0] for _ in range(repeats))
    theirs = [timed(lambda: original_score(setting, frequencies, images)) for _ in range(repeats)]
    original = min(taken for taken, _ in theirs)
    difference = float(np.abs(scores - theirs[0][1]).max())
    assert difference < 1e-6 and scores.max() > 1, difference
    print(
        f"| {name} | {images} | {len(counted)} | {original:.1f} | {first:.1f} | {ours:.1f} | {original / first:.1f} | "
        f"{original / ours:.1f} | {difference:.0e} |"
    )


def main() -> None:
    """Print a markdown table."""
    parser = argparse.ArgumentParser("python -m benchmarks.cider", description="Time CIDEr-D.")
    parser.add_argument("--images", type=int, default=20000, help="images of the large table (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="calls; the fastest counts")
    args = parser.parse_args()
    rng = random.Random(0)
    beams, single = make_setting(rng, HYPOTHESES // 5, 5), make_setting(rng, HYPOTHESES, 1)
    others = make_setting(rng, args.images, 1)[1]
    print(f"| {' | '.join(COLUMNS)} |\n" + "| --- " * len(COLUMNS) + "|")
    for table in ([], others):
        print_row("one update: 64 images, beam 5", beams, HYPOTHESES, table, args.repeats)
        print_row("its 32 calls", beams, 10, table, args.repeats)
        print_row("320 images", single, HYPOTHESES, table, args.repeats)


if __name__ == "__main__":
    main()
