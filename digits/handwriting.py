"""The real handwriting behind the scenes: scikit-learn's 1,797 digits of 8 x 8 pixels, split by sample."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from utils.errors import UserError

# Neighboring samples seem to share a writer, so contiguous parts keep most writers out of the other parts.
_PARTS = {"train": slice(0, 1347), "val": slice(1347, 1497), "test": slice(1497, 1797)}
SPLITS = tuple(_PARTS)
_TURN, _SLANT, _STRETCH = math.radians(15), 0.2, 0.15  # largest change of a written digit
_ROOM = 3  # pixels of paper around it, for what it grows
_FAINTEST = 0.06  # ink that resampling leaves beside the strokes


@dataclass(frozen=True)
class DigitSamples:
    """Handwritten samples of one split.

    Attributes:
        ink: (N, 8, 8) float32, 0 paper to 1 full stroke.
        digits: (N,) int64, 0 to 9.
        numbers: (N,) int64, index of each sample in scikit-learn's dataset.
        varied: whether no two drawings of a sample are the same.
    """

    ink: np.ndarray
    digits: np.ndarray
    numbers: np.ndarray
    varied: bool

    def of(self, digit: int) -> np.ndarray:
        """(M, 8, 8) samples that show a digit."""
        return self.ink[self.digits == digit]

    def write(self, digit: int, rng: np.random.Generator) -> np.ndarray:
        """(h, w) any sample of a digit, turned, slanted and stretched a little if they are varied."""
        written = self.of(digit)
        ink = written[rng.integers(len(written))]
        return vary(ink, rng.spawn(1)[0]) if self.varied else ink


@cache
def load_digit_samples(split: str, varied: bool = False) -> DigitSamples:
    """Samples of "train", "val" or "test"; no sample is in two of them. For `varied` see `DigitSamples`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("The demo data needs scikit-learn: pip install scikit-learn.") from error
    part = _PARTS[split]
    images, labels = load_digits(return_X_y=True)
    ink = (images[part] / 16).astype(np.float32).reshape(-1, 8, 8)  # stored as 0..16
    return DigitSamples(ink, labels[part], np.arange(len(labels))[part], varied)


def vary(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(h, w) -> (h + 6, w + 6): the same digit as another writer might turn, slant and stretch it."""
    ink = np.pad(ink, _ROOM)
    turn, slant = rng.uniform(-1, 1, 2) * (_TURN, _SLANT)
    wide, high = 1 + rng.uniform(-_STRETCH, _STRETCH, 2)
    across = (math.cos(turn) * wide, -math.sin(turn) * high + slant)
    down = (math.sin(turn) * wide, math.cos(turn) * high)
    height, width = ink.shape
    x, y = width / 2, height / 2  # stays where it is
    inverse = (*across, x - across[0] * x - across[1] * y, *down, y - down[0] * x - down[1] * y)
    drawn = Image.fromarray(ink).transform((width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC)
    changed = np.asarray(drawn).clip(0, 1)
    return np.where(changed < _FAINTEST, 0, changed)
