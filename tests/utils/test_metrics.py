"""Metric sums and figures, against golden figures, scikit-learn and torchvision."""

import json
import math
import random
from pathlib import Path

import pytest
import sacrebleu
import torch
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef
from torchvision import ops

from utils.metrics import (
    Metric,
    bleu,
    bleu_sums,
    box_hits,
    box_iou,
    clamp_boxes,
    confusion,
    f1,
    mcc,
    mean,
    vqa_soft_scores,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())["box_accuracy"]


def test_mean_of_sums() -> None:
    assert mean((3.0, 4)) == 0.75
    assert mean((0, 0)) == 0.0
    assert Metric(3).value([7, 2]) == 3.5 and Metric(3).digits == 3
    assert Metric(4, f1).value([1, 1, 0, 0]) == f1([1, 1, 0, 0])


def test_bleu_by_hand() -> None:
    # Of 4, 3, 2, 1 n-grams 3, 2, 1, 0 are found; 0 of 1 is smoothed to 1 / 2. The closer reference is as long.
    assert bleu_sums(["a b c d"], [["a b c e", "z"]]) == (3, 2, 1, 0, 4, 3, 2, 1, 4, 4)
    assert bleu([3, 2, 1, 0, 4, 3, 2, 1, 4, 4]) == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    assert bleu([3.0, 2, 1, 0, 4, 3, 2, 1, 4, 8]) == pytest.approx(bleu([3, 2, 1, 0, 4, 3, 2, 1, 4, 4]) / math.e)
    assert bleu([0] * 10) == bleu(bleu_sums([""], [["a"]])) == 0


def test_bleu_of_parts_is_bleu_of_the_whole() -> None:
    rng = random.Random(0)
    texts = [
        " ".join(rng.choices(["a", "red", "on", "it's", "x-ray,", "3.5"], k=rng.randint(0, 12))) for _ in range(60)
    ]
    references = [rng.choices(texts, k=rng.randint(1, 5)) for _ in texts]
    parts = [bleu_sums(texts[i : i + 7], references[i : i + 7]) for i in range(0, 60, 7)]
    padded = [[own[i] if i < len(own) else None for own in references] for i in range(5)]
    expected = sacrebleu.corpus_bleu(texts, padded)  # type: ignore[arg-type]
    assert bleu([sum(column) for column in zip(*parts, strict=True)]) == pytest.approx(expected.score)
    assert expected.score > 5


def test_vqa_score_is_the_confidence_of_the_answer() -> None:
    references = [{"yes": 1.0, "no": 0.3}, {"2": 0.6}, {}]
    assert vqa_soft_scores(["no", "3", "red"], references) == [0.3, 0.0, 0.0]
    with pytest.raises(ValueError):
        vqa_soft_scores(["no"], references)


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_golden_box_hits(threshold: float) -> None:
    boxes, references = torch.tensor(GOLDEN["hypotheses"]), torch.tensor(GOLDEN["references"])
    hits = box_hits(boxes, references, threshold)
    assert hits.dtype == torch.bool
    assert hits.tolist() == [value == 1.0 for value in GOLDEN[f"threshold_{threshold}"]]


def test_hits_are_at_half_overlap_by_default() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    others = torch.tensor([[0.0, 0, 10, 19.9], [0, 0, 10, 20.1]])
    assert box_hits(boxes, others).tolist() == [True, False]


def test_iou_equals_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, 2, 2, generator=generator) * 400
    boxes, others = torch.cat([corners.amin(2), corners.amax(2)], dim=-1).unbind(1)  # (200, 4) each
    expected = ops.box_iou(boxes, others).diagonal()
    assert (expected > 0.3).any() and (expected == 0).any()
    torch.testing.assert_close(box_iou(boxes, others), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "box, other",
    [
        ([0, 0, 10, 10], [20, 20, 30, 30]),  # apart in both directions: both sides negative, their product positive
        ([0, 0, 10, 10], [10, 0, 20, 10]),  # touching
        ([10, 10, 0, 0], [0, 0, 10, 10]),  # corners swapped
        ([5, 5, 5, 5], [5, 5, 5, 5]),  # a point
    ],
)
def test_boxes_that_do_not_overlap(box: list[float], other: list[float]) -> None:
    boxes, others = torch.tensor([box, other]).float(), torch.tensor([other, box]).float()
    assert box_iou(boxes, others).tolist() == [0.0, 0.0]
    assert not box_hits(boxes, others).any()


def test_union_is_enlarged_by_a_millionth() -> None:
    tiny = torch.tensor([[0.0, 0.0, 1e-3, 1e-3]])
    assert box_iou(tiny, tiny).item() == pytest.approx(0.5)


def test_no_boxes() -> None:
    assert box_hits(torch.empty(0, 4), torch.empty(0, 4)).shape == (0,)


def test_clamped_boxes_lie_in_the_image() -> None:
    boxes = torch.tensor([[[-3.0, -1, 700, 90], [2, 3, 4, 5]]])
    clamped = clamp_boxes(boxes, 640, 80.5)
    assert clamped.tolist() == [[[0, 0, 640, 80.5], [2, 3, 4, 5]]]
    assert boxes[0, 0, 0] == -3


@pytest.mark.parametrize("seed", range(5))
def test_judgements_equal_scikit_learn(seed: int) -> None:
    rng = random.Random(seed)
    true = [rng.random() < 0.3 for _ in range(97)]
    said = [value ^ (rng.random() < 0.25) for value in true]
    tp, fp, tn, fn = counts = confusion(said, true)
    assert [tn, fp, fn, tp] == confusion_matrix(true, said).ravel().tolist()
    assert f1(counts) == pytest.approx(f1_score(true, said), abs=1e-12)
    assert mcc(counts) == pytest.approx(matthews_corrcoef(true, said), abs=1e-12)


def test_sums_add_up_over_batches() -> None:
    said, true = [True, True, False, False, True], [True, False, False, True, True]
    parts = confusion(said[:2], true[:2]), confusion(said[2:], true[2:])
    assert tuple(map(sum, zip(*parts, strict=True))) == confusion(said, true) == (2, 1, 1, 1)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (0, 0, 5, 3), (0, 4, 0, 0), (0, 2, 3, 0)])
def test_undefined_figures_are_zero(counts: tuple[int, int, int, int]) -> None:
    assert f1(counts) == 0.0
    assert mcc(counts) == 0.0


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError):
        confusion([True], [True, False])
