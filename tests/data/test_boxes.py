"""Arithmetic of boxes, against golden figures and torchvision."""

import json
from pathlib import Path

import pytest
import torch
from torchvision import ops

from data.boxes import box_hits, box_iou, clamp_boxes

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())["box_accuracy"]


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
