"""Metrics as sums that add up over batches and processes, and the figures made from the sums."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest


def mean(sums: Sequence[float]) -> float:
    """Mean from (total, count); 0 if nothing was counted."""
    total, count = sums
    return total / count if count else 0.0


@dataclass(frozen=True)
class Metric:
    """How a task reports one of its metrics.

    Attributes:
        digits: decimal places of the reported figure.
        value: the figure from the metric's sums over all samples.
    """

    digits: int
    value: Callable[[Sequence[float]], float] = mean


def vqa_soft_scores(answers: Sequence[str], references: Sequence[Mapping[str, float]]) -> list[float]:
    """Score of each answer: its confidence among its sample's references (answer -> confidence), or 0."""
    return [float(reference.get(answer, 0.0)) for answer, reference in zip(answers, references, strict=True)]


def confusion(said: Sequence[bool], true: Sequence[bool]) -> tuple[int, int, int, int]:
    """Counts (TP, FP, TN, FN) of what was said against what is true."""
    pairs = list(zip(said, true, strict=True))
    return (
        sum(s and t for s, t in pairs),
        sum(s and not t for s, t in pairs),
        sum(not s and not t for s, t in pairs),
        sum(not s and t for s, t in pairs),
    )


def f1(sums: Sequence[float]) -> float:
    """F1 = 2 TP / (2 TP + FP + FN) from (TP, FP, TN, FN); 0 if undefined."""
    tp, fp, _, fn = sums
    return mean((2 * tp, 2 * tp + fp + fn))


def mcc(sums: Sequence[float]) -> float:
    """Matthews correlation from (TP, FP, TN, FN); 0 if undefined.

    (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN))
    """
    tp, fp, tn, fn = sums
    return mean((tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))))


def bleu_sums(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """What `bleu` needs of texts and the references of each, in sacrebleu's tokens (13a).

    Returns:
        (10,) n-grams found in a reference for n = 1..4, all n-grams for n = 1..4, tokens, tokens of the references
        closest in length.
    """
    from sacrebleu.metrics.bleu import BLEU

    score = BLEU().corpus_score(list(texts), list(zip_longest(*references)))
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


def bleu(sums: Sequence[float]) -> float:
    """BLEU of a corpus, 0 to 100, from the sums of `bleu_sums`; orders without a match are smoothed exponentially."""
    from sacrebleu.metrics.bleu import BLEU

    whole = [int(total) for total in sums]
    return BLEU.compute_bleu(whole[:4], whole[4:8], whole[8], whole[9], smooth_method="exp").score
