"""Metrics as sums that add up over batches and processes, and the figures made from the sums."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor


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


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes in the same row, 0 where they do not overlap.

    The union is enlarged by 1e-6, as in the released evaluation: two equal boxes of no area give 0.

    Args:
        boxes: (B, 4) x0, y0, x1, y1 in pixels; a box whose corners are swapped overlaps nothing.
        others: (B, 4).

    Returns:
        (B,)
    """
    corner = torch.maximum(boxes[:, :2], others[:, :2])  # (B, 2)
    sides = torch.minimum(boxes[:, 2:], others[:, 2:]) - corner  # (B, 2)
    overlap = sides.clamp(min=0).prod(dim=1)
    return overlap / (_area(boxes) + _area(others) - overlap + 1e-6)


def box_hits(boxes: Tensor, references: Tensor, threshold: float = 0.5) -> Tensor:
    """Whether each box overlaps its reference by at least a threshold above 0: (B, 4), (B, 4) -> (B,) bool."""
    return box_iou(boxes, references) >= threshold


def clamp_boxes(boxes: Tensor, width: float, height: float) -> Tensor:
    """Boxes (..., 4) cut at the borders of an image of width x height pixels; a new tensor."""
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


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


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
