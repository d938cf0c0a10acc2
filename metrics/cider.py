"""CIDEr-D (Vedantam et al. 2015): n-grams a caption shares with its references, rare ones counting more."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, repeat
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.plain_pickle import load_plain_pickle
from utils.punctuation import remove_punctuation

MAX_ORDER = 4
SIGMA = 6.0  # width of the length penalty, in words
NGram = tuple[str, ...]

_HALF = 32  # bits of a number; two make a key
_LOW = (1 << _HALF) - 1
_CHUNK = 4096  # hypotheses scored at once: bounds memory


def reward_text(caption: str) -> str:
    """Caption as self-critical training compares it: no punctuation, and `<eos>` as a last word.

    The released document frequencies of the training captions were counted with that word.
    """
    return remove_punctuation(caption).strip() + " <eos>"


def count_documents(images: Iterable[Iterable[str]]) -> tuple[dict[NGram, int], int]:
    """Number of images whose captions have an n-gram, for all n-grams; and the number of images."""
    frequencies: Counter[NGram] = Counter()
    total = 0
    for captions in images:
        frequencies.update({ngram for caption in captions for ngram in _ngrams(caption.split())})
        total += 1
    return dict(frequencies), total


class CiderD:
    """CIDEr-D scorer over n-grams of one to four words, split at white space.

    Args:
        document_frequency: n-gram -> number of images whose references have it; 0 for an unknown n-gram.
        log_reference_count: natural logarithm of the number of images counted.
    """

    def __init__(self, document_frequency: Mapping[NGram, float], log_reference_count: float) -> None:
        self.log_reference_count = log_reference_count
        self._table = _NGramTable(document_frequency)
        frequencies = np.append(self._table.frequencies, 0.0)  # the last one is that of all unknown n-grams
        self._weights = log_reference_count - np.log(np.maximum(1.0, frequencies))

    @classmethod
    def from_pickle(cls, path: str | Path) -> "CiderD":
        """Read the released format, a dict of `document_frequency` and `ref_len`; UserError otherwise."""
        try:
            with open(path, "rb") as file:
                table = load_plain_pickle(file)
            frequencies, total = table["document_frequency"], table["ref_len"]
            if not isinstance(frequencies, dict) or not all(isinstance(key, tuple) for key in frequencies):
                raise TypeError("its document_frequency is not a dict of n-gram tuples")
            return cls(frequencies, math.log(total))
        except OSError as error:
            raise UserError(
                f"Cannot read the document frequencies {path}: {error.strerror}; check the path."
            ) from error
        except Exception as error:  # a torn or foreign pickle can raise nearly anything
            raise UserError(
                f"{path} is not a table of document frequencies ({error}); give a pickle of document_frequency and "
                "ref_len such as coco-train-words.p, or make one: python -m metrics.document_frequencies."
            ) from error

    @classmethod
    def from_references(cls, references: Iterable[Iterable[str]]) -> "CiderD":
        """Count document frequencies in these references, each n-gram once an image ("corpus" mode)."""
        frequencies, total = count_documents(references)
        if not total:
            raise ValueError("CIDEr-D needs the references of at least one image.")
        return cls(frequencies, math.log(total))

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
        for i, captions in enumerate(references):
            if not captions:
                raise ValueError(f"Hypothesis {i} has no references.")
        starts = range(0, len(hypotheses), _CHUNK)
        chunks = [self._score(hypotheses[i : i + _CHUNK], references[i : i + _CHUNK]) for i in starts]
        scores = np.concatenate([*chunks, np.zeros(0)])
        return (float(scores.mean()) if len(scores) else 0.0), scores

    def _score(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Scores (N,). All (hypothesis, reference) pairs are compared at once; equal captions are read once."""
        number: dict[str, int] = defaultdict(count().__next__)
        # In self-critical training hypotheses of an image are often equal, and its references are the same for all of
        # them: with a number for each different caption none is split or weighed twice.
        own = [number[caption] for caption in hypotheses]
        others = np.array([number[caption] for captions in references for caption in captions])
        captions = _Captions([caption.split() for caption in number], self._table, self._weights)
        counts = np.array([len(captions) for captions in references])
        image = np.repeat(np.arange(len(own)), counts)
        return 10.0 * np.bincount(image, captions.similarity(np.array(own)[image], others), len(own)) / counts


class _NGramTable:
    """Numbers for all n-grams of a mapping, and their values.

    A word has a number; a longer n-gram is a key (number of the n-gram without its last word, number of that word),
    and its number is the key's rank among those of its length. So an array of n-grams is looked up in one binary
    search per length, and three million of them take 70 MB instead of the 580 of a dict of tuples.

    Attributes:
        words: word -> number. size: how many numbers are in use. frequencies: (size,) values, 0 where there is none.
    """

    def __init__(self, values: Mapping[NGram, float]) -> None:
        words: dict[str, int] = defaultdict(count().__next__)
        flat = np.fromiter(map(words.__getitem__, chain.from_iterable(values)), np.int64)
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        starts = np.cumsum(lengths) - lengths
        numbers = np.zeros_like(starts)
        numbers[lengths > 0] = flat[starts[lengths > 0]]
        self.words, self.size = dict(words), len(words)
        self._keys: list[tuple[int, np.ndarray]] = []  # per order from 2: the first number, sorted keys
        for order in range(2, MAX_ORDER + 1):
            # Prefixes of all lengths get numbers, also those that are no keys of the mapping: a longer n-gram is found
            # by its prefix. Their frequency stays 0.
            longer = np.flatnonzero(lengths >= order)
            keys, ranks = np.unique(_key(numbers[longer], flat[starts[longer] + order - 1]), return_inverse=True)
            numbers[longer] = self.size + ranks
            self._keys.append((self.size, np.append(keys, np.iinfo(np.int64).max)))  # a search ends inside
            self.size += len(keys)
        self.frequencies = np.zeros(self.size)
        # An n-gram of more words has the number of its first four, whose frequency it must not overwrite.
        useful = (lengths > 0) & (lengths <= MAX_ORDER)
        self.frequencies[numbers[useful]] = np.fromiter(values.values(), np.float64, len(values))[useful]

    def find_words(self, words: list[str]) -> np.ndarray:
        """Numbers of words; unknown ones get numbers from `size` on, equal words the same."""
        numbers = np.fromiter(map(self.words.get, words, repeat(-1)), np.int64, len(words))
        new: dict[str, int] = defaultdict(count(self.size).__next__)
        for at in np.flatnonzero(numbers < 0):
            numbers[at] = new[words[at]]
        return numbers

    def find(self, order: int, prefixes: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Numbers of n-grams of one order given by prefix and last word; unknown ones get numbers from `size` on."""
        keys, inverse = np.unique(_key(prefixes, words), return_inverse=True)
        first, known = self._keys[order - 2]
        ranks = np.searchsorted(known, keys)
        # Unknown n-grams need numbers too, as hypothesis and reference may share them. The running sum gives equal ones
        # the same number, since `keys` holds each once; the numbers hold for this call and order only.
        new = known[ranks] != keys
        return np.where(new, self.size + np.cumsum(new) - 1, first + ranks)[inverse]


class _Captions:
    """C captions as one sorted list of their n-grams, E of them.

    Attributes:
        lengths: (C,) number of words.
        entries: (E,) key of (row, n-gram), each once; row = MAX_ORDER * caption + order - 1.
        rows, weights: (E,) of the entries. norms: (C, MAX_ORDER).
    """

    def __init__(self, captions: list[list[str]], table: _NGramTable, weights: np.ndarray) -> None:
        self.lengths = np.fromiter(map(len, captions), np.int64, len(captions))
        words = table.find_words(list(chain.from_iterable(captions)))
        row = MAX_ORDER * np.repeat(np.arange(len(captions)), self.lengths)
        left = np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(words))  # words to the caption's end
        # `numbers` holds, for each word, the number of the n-gram that starts there. Each further order appends a word
        # to all of them at once, and leaves out those that would run into the next caption.
        numbers, entries = words.copy(), [_key(row, words)]
        for order in range(2, MAX_ORDER + 1):
            at = np.flatnonzero(left >= order)
            numbers[at] = table.find(order, numbers[at], words[at + order - 1])
            entries.append(_key(row[at] + order - 1, numbers[at]))
        self.entries, repeats = np.unique(np.concatenate(entries), return_counts=True)
        self.rows = self.entries >> _HALF
        # The last weight is that of all numbers from table.size on, which are unknown n-grams.
        self.weights = repeats * weights[np.minimum(self.entries & _LOW, table.size)]
        squares = np.bincount(self.rows, self.weights**2, MAX_ORDER * len(captions))
        self.norms = np.sqrt(squares).reshape(-1, MAX_ORDER)

    def similarity(self, hypotheses: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Mean over orders of the clipped cosine, times the Gaussian length penalty: captions (P,), (P,) -> (P,)."""
        sizes = np.bincount(self.rows // MAX_ORDER, minlength=len(self.lengths))
        starts = np.cumsum(sizes) - sizes
        repeats = sizes[references]
        pair = np.repeat(np.arange(len(references)), repeats)
        # Every n-gram of every pair's reference, looked up in the pair's hypothesis. A key begins with its caption, so
        # adding the difference of the two captions makes it the key that the hypothesis would have.
        ours = np.arange(len(pair)) + np.repeat(starts[references] - np.cumsum(repeats) + repeats, repeats)
        wanted = self.entries[ours] + _key(MAX_ORDER * (hypotheses - references), 0)[pair]
        theirs = np.minimum(np.searchsorted(self.entries, wanted), len(self.entries) - 1)
        both = np.flatnonzero(self.entries[theirs] == wanted)
        theirs, ours, pair = theirs[both], ours[both], pair[both]
        # CIDEr-D clips: repeating a word of the reference must not pay.
        products = np.minimum(self.weights[theirs], self.weights[ours]) * self.weights[ours]
        cell = MAX_ORDER * pair + self.rows[ours] % MAX_ORDER
        dots = np.bincount(cell, products, MAX_ORDER * len(references)).reshape(-1, MAX_ORDER)
        norms = self.norms[hypotheses] * self.norms[references]
        cosines = np.divide(dots, norms, out=np.zeros(dots.shape), where=norms > 0).mean(1)
        # The published code takes the number of bigrams for the length.
        bigrams = np.maximum(self.lengths - 1, 0)
        return cosines * np.exp(-((bigrams[hypotheses] - bigrams[references]) ** 2) / (2 * SIGMA**2))


def _key(high: np.ndarray, low: np.ndarray | int) -> np.ndarray:
    """Two numbers in one: sorted by the first, then by the second."""
    return (high << _HALF) + low


def _ngrams(words: list[str]) -> Iterator[NGram]:
    """All n-grams of one to four words, repeats included."""
    shifted = [words[start:] for start in range(MAX_ORDER)]
    return chain.from_iterable(zip(*shifted[:order], strict=False) for order in range(1, MAX_ORDER + 1))
