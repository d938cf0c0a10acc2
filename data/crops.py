"""Images of the pretraining recipe, resized and cropped together with the boxes on them.

Boxes are (..., 4) float32: x0, y0, x1, y1 in pixels. Images are RGB.
"""

import random

import torch
from PIL import Image
from torch import Tensor

from data.boxes import scale_boxes

LONGEST_SIDE = 672  # pixels
JITTER = 0.5  # a detection image is scaled to 1 .. 1.5 times the crop


def draw_short_side(size: int, largest: int, rng: random.Random) -> int:
    """Uniform from `size` to `largest`; `size` itself if that is larger."""
    return rng.randint(size, max(size, largest))


def resize_short_side(image: Image.Image, side: int) -> Image.Image:
    """Image whose short side has `side` pixels; no side has more than 672, be it at the cost of the proportions."""
    short = min(image.size)
    longest = max(LONGEST_SIDE, side)
    width, height = (min(side if length == short else int(side * length / short), longest) for length in image.size)
    return _resized(image, width, height)


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """The square in the middle."""
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def crop_around(image: Image.Image, box: Tensor, side: int) -> tuple[Image.Image, Tensor]:
    """The square around a box (4,), shifted to stay in the image, and the part of the box that is in it."""
    corner = []
    for axis, length in enumerate(image.size):
        center = float(box[axis] + box[axis + 2]) / 2
        corner.append(max(center - side / 2 + min(length - center - side / 2, 0.0), 0.0))
    left, top = (round(offset) for offset in corner)
    shifted = box - torch.tensor(corner).repeat(2)  # not rounded, as released
    return image.crop((left, top, left + side, top + side)), shifted.clamp(0, side)


def jittered_crop(
    image: Image.Image, boxes: Tensor, side: int, rng: random.Random, generator: torch.Generator
) -> tuple[Image.Image, Tensor]:
    """A random square of the image at a random scale, half the time mirrored, with what is left of the boxes.

    Args:
        image: the image.
        boxes: (N, 4).
        side: side of the square in pixels.
        rng: draws the flip.
        generator: draws scale and place.

    Returns:
        The square, and boxes (N, 4) in it; those outside it have no area.
    """
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x0, y0, x1, y1 = boxes.unbind(-1)
        boxes = torch.stack([image.width - x1, y0, image.width - x0, y1], dim=-1)
    target = round(side * (1 + JITTER * _uniform(generator)))
    scale = max(target / length for length in image.size)
    resized = _resized(image, *(round(length * scale) for length in image.size))
    boxes = scale_boxes(boxes, image, resized)
    top = int((resized.height - side) * _uniform(generator))
    left = int((resized.width - side) * _uniform(generator))
    boxes = (boxes - torch.tensor([left, top, left, top])).clamp(0, side)
    return resized.crop((left, top, left + side, top + side)), boxes


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator))
