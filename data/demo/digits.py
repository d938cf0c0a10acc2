"""The real handwriting behind the scenes: scikit-learn's 1,797 digits of 8 x 8 pixels, split by sample."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from utils.errors import UserError

# Neighbouring samples seem to share a writer, so contiguous parts keep most writers out of the other parts.
_PARTS = {"train": slice(0, 1347), "val": slice(1347, 1497), "test": slice(1497, 1797)}
SPLITS = tuple(_PARTS)


@dataclass(frozen=True)
class DigitSamples:
    """Handwritten samples of one split.

    Attributes:
        ink: (N, 8, 8) float32, 0 paper to 1 full stroke.
        digits: (N,) int64, 0 to 9.
        numbers: (N,) int64, index of each sample in scikit-learn's data set.
    """

    ink: np.ndarray
    digits: np.ndarray
    numbers: np.ndarray

    def of(self, digit: int) -> np.ndarray:
        """(M, 8, 8) samples that show a digit."""
        return self.ink[self.digits == digit]


@cache
def load_digit_samples(split: str) -> DigitSamples:
    """Samples of "train", "val" or "test"; no sample is in two of them."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("The demo data need scikit-learn: pip install scikit-learn.") from error
    part = _PARTS[split]
    images, labels = load_digits(return_X_y=True)
    ink = (images[part] / 16).astype(np.float32).reshape(-1, 8, 8)  # stored as 0..16
    return DigitSamples(ink, labels[part], np.arange(len(labels))[part])
