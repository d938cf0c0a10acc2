"""CIDEr-D (Vedantam et al. 2015): n-grams a caption shares with its references, rare ones counting more."""

import math
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import UserError

MAX_ORDER = 4
SIGMA = 6.0  # width of the length penalty, in words
NGram = tuple[str, ...]

_PICKLE_GLOBALS: dict[tuple[str, str], type] = {
    ("collections", "defaultdict"): defaultdict,
    ("builtins", "dict"): dict,
    ("builtins", "float"): float,
    ("builtins", "int"): int,
    ("__builtin__", "dict"): dict,  # pickles of Python 2
    ("__builtin__", "float"): float,
    ("__builtin__", "int"): int,
    ("__builtin__", "long"): int,
}


class _TableUnpickler(pickle.Unpickler):
    """Reads containers, numbers and strings; anything that could run code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _PICKLE_GLOBALS[module, name]


class _Caption(NamedTuple):
    """N-gram weights of a caption, their norm per order, and its number of bigrams."""

    weights: dict[NGram, float]
    norms: list[float]
    length: int


class CiderD:
    """CIDEr-D scorer over n-grams of one to four words, split at white space.

    Args:
        document_frequency: n-gram -> number of images whose references have it; 0 for an unknown n-gram.
        log_reference_count: natural logarithm of the number of images counted.
    """

    def __init__(self, document_frequency: Mapping[NGram, float], log_reference_count: float) -> None:
        self.document_frequency = document_frequency
        self.log_reference_count = log_reference_count

    @classmethod
    def from_pickle(cls, path: str | Path) -> "CiderD":
        """Read the released format, a dict of `document_frequency` and `ref_len`; UserError otherwise."""
        try:
            with open(path, "rb") as file:
                table = _TableUnpickler(file, encoding="latin-1").load()
            frequencies, count = table["document_frequency"], table["ref_len"]
            if not isinstance(frequencies, dict) or not all(isinstance(key, tuple) for key in frequencies):
                raise TypeError("its document_frequency is not a dict of n-gram tuples")
            return cls(frequencies, math.log(count))
        except OSError as error:
            raise UserError(
                f"Cannot read the document frequencies {path}: {error.strerror}; check the path."
            ) from error
        except Exception as error:  # a torn or foreign pickle can raise nearly anything
            raise UserError(
                f"{path} is not a table of document frequencies ({error}); "
                "give a pickle of document_frequency and ref_len such as coco-train-words.p."
            ) from error

    @classmethod
    def from_references(cls, references: Sequence[Sequence[str]]) -> "CiderD":
        """Count document frequencies in these references, each n-gram once an image ("corpus" mode)."""
        if not references:
            raise ValueError("CIDEr-D needs the references of at least one image.")
        frequencies: dict[NGram, float] = {}
        for captions in references:
            for ngram in {ngram for caption in captions for ngram in _ngrams(caption.split())}:
                frequencies[ngram] = frequencies.get(ngram, 0.0) + 1.0
        return cls(frequencies, math.log(len(references)))

    def score(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
        """Score each hypothesis against the references of its image.

        Args:
            hypotheses: N captions, prepared like those the document frequencies were counted in.
            references: N lists of captions, none empty.

        Returns:
            The mean (0 for no hypotheses) and the scores (N,) float64; 10 is an identical caption.
        """
        if len(hypotheses) != len(references):
            raise ValueError(f"{len(hypotheses)} hypotheses but references of {len(references)} images.")
        known: dict[str, _Caption] = {}  # the samples of one image share its references
        scores = np.zeros(len(hypotheses))
        for i, (hypothesis, captions) in enumerate(zip(hypotheses, references, strict=True)):
            if not captions:
                raise ValueError(f"Hypothesis {i} has no references.")
            for caption in captions:
                if caption not in known:
                    known[caption] = self._weigh(caption)
            weighed = self._weigh(hypothesis)
            total = sum(_similarity(weighed, known[caption]) for caption in captions)
            scores[i] = 10.0 * total / len(captions)
        return (float(scores.mean()) if len(scores) else 0.0), scores

    def _weigh(self, caption: str) -> _Caption:
        """Weights count * (log N - log df) of a caption's n-grams."""
        words = caption.split()
        frequency_of = self.document_frequency.get  # get: a defaultdict must not grow
        weights, squares = {}, [0.0] * MAX_ORDER
        for ngram, count in Counter(_ngrams(words)).items():
            weight = count * (self.log_reference_count - math.log(max(1.0, frequency_of(ngram, 0.0))))
            weights[ngram] = weight
            squares[len(ngram) - 1] += weight * weight
        return _Caption(weights, [math.sqrt(square) for square in squares], max(len(words) - 1, 0))


def _ngrams(words: list[str]) -> Iterator[NGram]:
    """All n-grams of one to four words, repeats included."""
    shifted = [words[start:] for start in range(MAX_ORDER)]
    return chain.from_iterable(zip(*shifted[:order], strict=False) for order in range(1, MAX_ORDER + 1))


def _similarity(hypothesis: _Caption, reference: _Caption) -> float:
    """Mean over orders of the clipped cosine, times the Gaussian length penalty."""
    products = [0.0] * MAX_ORDER
    reference_weights = reference.weights
    for ngram, weight in hypothesis.weights.items():
        other = reference_weights.get(ngram)
        if other is not None:
            products[len(ngram) - 1] += min(weight, other) * other
    cosines = 0.0
    for product, norm, other_norm in zip(products, hypothesis.norms, reference.norms, strict=True):
        if norm and other_norm:
            cosines += product / (norm * other_norm)
    delta = hypothesis.length - reference.length
    return cosines / MAX_ORDER * math.exp(-(delta**2) / (2 * SIGMA**2))
