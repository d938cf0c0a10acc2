"""Reads the digit in an image back: whether generated and reconstructed scenes show what they should.

The reader knows the training handwriting only. Guessing is right for a tenth of the digits, a sixth of the colors and
a ninth of the positions.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from digits.handwriting import load_digit_samples
from digits.scene import Box, random_scene, render
from digits.words import COLOURS, DIGITS, GRID, POSITIONS, Cell, DigitSpec

_FAINTEST = 50  # contrast of 255 below which nothing is written
_STROKE, _CORE = 0.35, 0.75  # parts of the strongest contrast: what belongs to the digit, and what shows its color
_SIDE = 12  # of the grid of ink that is classified
_LESSONS = 2500  # scenes the reader learns from


class Legibility(NamedTuple):
    """Parts of the images, 0 to 1, in which a value is read as it should be."""

    digit: float
    colour: float
    position: float


def legibility(images: Sequence[Image.Image], specs: Sequence[DigitSpec], box: Box | None = None) -> Legibility:
    """How often each image shows its spec; chance is (1/10, 1/6, 1/9).

    Args:
        images: RGB, square and of one size, each with one digit somewhere.
        specs: what they should show. box: as for `read_spec`.
    Raises:
        ValueError: not as many specs as images, or none.
    """
    if not images:
        raise ValueError("there is no image to read")
    found = [read_spec(image, box) for image in images]
    pairs = list(zip(found, specs, strict=True))
    return Legibility(
        *(
            sum(seen is not None and getattr(seen, name) == getattr(spec, name) for seen, spec in pairs) / len(pairs)
            for name in Legibility._fields
        )
    )


def read_spec(image: Image.Image, box: Box | None = None) -> DigitSpec | None:
    """The digit in an image, in words, or None where nothing stands out from the canvas.

    Args:
        image: RGB, square. box: where to look; None looks for the third of the side with the most ink.
    """
    pixels = np.asarray(image, dtype=np.float32)  # (R, R, 3)
    canvas = np.median(pixels, axis=(0, 1))
    contrast = (pixels - canvas).max(axis=2)  # every color is bright in some channel
    place = _strokes(contrast, box or _densest(contrast))
    if place is None:
        return None
    cell = Cell(*((low + high) * GRID // (2 * len(contrast)) for low, high in (place[::2], place[1::2])))
    position = next(name for name, where in POSITIONS.items() if where == cell)
    digit = int(_classifier(image.width).predict(_grid(contrast, place)[None])[0])
    part = np.s_[place.top : place.bottom, place.left : place.right]
    return DigitSpec(_color(pixels[part] - canvas, contrast[part], canvas), DIGITS[digit], position)


def _densest(contrast: np.ndarray) -> Box:
    """Square of a cell's size with the most ink; digits are no larger."""
    side = -(-len(contrast) // GRID)
    sums = np.pad(contrast.clip(min=0), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = sums[side:, side:] - sums[side:, :-side] - sums[:-side, side:] + sums[:-side, :-side]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return Box(int(left), int(top), int(left) + side, int(top) + side)


def _strokes(contrast: np.ndarray, box: Box) -> Box | None:
    """The box cut down to its ink."""
    inside = contrast[box.top : box.bottom, box.left : box.right]
    if inside.size == 0 or inside.max() < _FAINTEST:
        return None
    ink = inside > _STROKE * inside.max()
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    left, top = box.left + int(columns[0]), box.top + int(rows[0])
    return Box(left, top, box.left + int(columns[-1]) + 1, box.top + int(rows[-1]) + 1)


def _grid(contrast: np.ndarray, box: Box) -> np.ndarray:
    """(144,) ink of the box, 0 to 1, in the middle of a square grid: narrow digits stay narrow."""
    width, height = box.right - box.left, box.bottom - box.top
    side = max(width, height)
    left, top = box.left + (width + side) / 2, box.top + (height + side) / 2  # the square's corner after the padding
    inside = np.zeros_like(contrast)
    part = np.s_[box.top : box.bottom, box.left : box.right]
    inside[part] = (contrast[part] / contrast[part].max()).clip(min=0)
    image = Image.fromarray(np.pad(inside, side))  # the square may reach over the edge
    square = (left, top, left + side, top + side)
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, square)).flatten()


def _color(added: np.ndarray, contrast: np.ndarray, canvas: np.ndarray) -> str:
    """The color in whose direction the strokes leave the canvas: thin ones are pale, but not of another hue."""
    mean = added[contrast > _CORE * contrast.max()].mean(axis=0)  # (3,)
    table = np.array(list(COLOURS.values())) - canvas
    return list(COLOURS)[int((table @ mean / np.linalg.norm(table, axis=1)).argmax())]


@cache
def _classifier(size: int) -> Any:
    """scikit-learn's support vector machine for images of `size` pixels, taught with the training handwriting."""
    from sklearn.svm import SVC

    rng, samples = np.random.default_rng(0), load_digit_samples("train")
    grids, digits = [], []
    for _ in range(_LESSONS):
        scene = random_scene(samples, rng, size)
        pixels = np.asarray(render(scene), dtype=np.float32)
        contrast = (pixels - np.median(pixels, axis=(0, 1))).max(axis=2)
        place = _strokes(contrast, _densest(contrast))
        if place is not None:
            grids.append(_grid(contrast, place))
            digits.append(DIGITS.index(scene.specs[0].digit))
    return SVC(C=10.0).fit(np.stack(grids), digits)
