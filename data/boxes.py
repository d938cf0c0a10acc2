"""Boxes (..., 4): x0, y0, x1, y1 in pixels; written in rows, as location bins, cut, compared."""

import torch
from PIL import Image
from torch import Tensor

from data.tsv import plain_number
from utils.errors import quoted

SLACK = 1.0  # pixels a box may leave the image by: annotation tools round


def parse_box(text: str, width: int, height: int) -> list[float]:
    """x0, y0, x1, y1 in pixels; ValueError unless it is a box inside a width x height image."""
    try:
        x0, y0, x1, y1 = (float(plain_number(part)) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"the box {quoted(text)} is not x0,y0,x1,y1") from error
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"the box {quoted(text)} has no area: x0 < x1 and y0 < y1 are needed")
    if min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        raise ValueError(f"the box {quoted(text)} is outside the image of {width} x {height} pixels")
    return [x0, y0, x1, y1]


def quantize(box: Tensor, max_image_size: int, num_bins: int) -> list[int]:
    """Bins of coordinates (4,), float32 pixels of the resized image; a little outside counts as the edge."""
    return (box / max_image_size * (num_bins - 1)).round().clamp(0, num_bins - 1).long().tolist()


def dequantize(bins: Tensor, ratios: Tensor, max_image_size: int, num_bins: int) -> Tensor:
    """Pixels (..., 4) of the original image, of bins (..., 4) and resize ratios (..., 2) of width and height."""
    return bins / (num_bins - 1) * max_image_size / torch.cat([ratios, ratios], dim=-1)


def scale_boxes(boxes: Tensor, before: Image.Image, after: Image.Image) -> Tensor:
    """Boxes on an image -> boxes on the resized one."""
    ratios = [new / old for new, old in zip(after.size, before.size, strict=True)]
    return boxes * torch.tensor(ratios).repeat(2)


def clamp_boxes(boxes: Tensor, width: float, height: float) -> Tensor:
    """Boxes (..., 4) cut at the borders of an image of width x height pixels; a new tensor."""
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


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


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
