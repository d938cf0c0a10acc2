"""A scene: colored handwritten digits in the cells of a 3 x 3 grid; how it is made up and drawn."""

import base64
import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from digits.handwriting import DigitSamples
from digits.words import COLOURS, DIGITS, GRID, POSITIONS, Cell, DigitSpec

_SMALLEST, _LARGEST = 0.78, 0.96  # longer side of a digit, in cells
_RIM = 0.5  # part of the empty pixel around the handwriting that is drawn, for soft edges
_GAIN = 1.3  # the thin ends of strokes are pale in 8 x 8 pixels
_TINT = 18  # how far a drawn color strays from the table, of 255
_CANVAS_LIGHT = (18, 46)  # mean brightness of the canvas, of 255
_CARD = 120  # gray of a card, of 255: between the canvas and every color


class Box(NamedTuple):
    """Pixel rectangle; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class SceneObject:
    """One digit of a scene.

    Attributes:
        spec: its color, digit and position in words.
        box: where it is drawn, close around the handwriting.
        ink: (h, w) float32 handwriting, 0 to 1, cut to its strokes and a rim of one empty pixel.
        rgb: the shade of the color it is drawn in.
    """

    spec: DigitSpec
    box: Box
    ink: np.ndarray
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Objects on a square canvas of `size` pixels.

    Attributes:
        objects: what is drawn.
        size: side of the canvas in pixels.
        texture_seed: fixes the look of the canvas.
        card: position hidden by a gray card, or None.
    """

    objects: tuple[SceneObject, ...]
    size: int
    texture_seed: int
    card: str | None = None

    @property
    def specs(self) -> list[DigitSpec]:
        """The objects in words."""
        return [item.spec for item in self.objects]


def random_scene(samples: DigitSamples, rng: np.random.Generator, size: int, count: int = 1) -> Scene:
    """Draw lots for a scene of `count` digits (1 to 9) in different cells of a canvas of `size` pixels."""
    cells = rng.permutation(len(POSITIONS))[:count]
    objects = tuple(_random_object(samples, rng, size, list(POSITIONS)[cell]) for cell in cells)
    return Scene(objects, size, int(rng.integers(2**32)))


def close_up(samples: DigitSamples, rng: np.random.Generator, size: int, digit: int) -> Scene:
    """Draw lots for a scene of one given digit that takes up most of the canvas."""
    item = _written(samples, rng, digit, "center", size, Cell(0, 0))
    return Scene((item,), size, int(rng.integers(2**32)))


def _random_object(samples: DigitSamples, rng: np.random.Generator, size: int, position: str) -> SceneObject:
    digit = int(rng.integers(len(DIGITS)))
    return _written(samples, rng, digit, position, size / GRID, POSITIONS[position])


def _written(
    samples: DigitSamples, rng: np.random.Generator, digit: int, position: str, side: float, cell: Cell
) -> SceneObject:
    """A digit in some color and handwriting, somewhere in a cell of `side` pixels."""
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    tint = rng.integers(-_TINT, _TINT + 1, size=3)
    red, green, blue = np.clip(np.array(COLOURS[colour]) + tint, 0, 255).tolist()
    ink = _cut_to_strokes(samples.write(digit, rng))
    box = _random_box(ink, rng, side, cell)
    return SceneObject(DigitSpec(colour, DIGITS[digit], position), box, ink, (red, green, blue))


def _cut_to_strokes(ink: np.ndarray) -> np.ndarray:
    """(H, W) -> (h, w): only a rim of one empty pixel is left around the strokes."""
    ink = np.pad(ink, 1)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] - 1 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2]


def _random_box(ink: np.ndarray, rng: np.random.Generator, side: float, cell: Cell) -> Box:
    """Rectangle of the handwriting's shape at a random place inside its cell; digits never overlap."""
    lengths = [length - 2 * _RIM for length in ink.shape]
    scale = rng.uniform(_SMALLEST, _LARGEST) * side / max(lengths)
    height, width = (max(1, int(length * scale)) for length in lengths)
    left = int(cell.column * side + rng.uniform(0, side - width))
    top = int(cell.row * side + rng.uniform(0, side - height))
    return Box(left, top, left + width, top + height)


def render(scene: Scene) -> Image.Image:
    """Draw a scene: (size, size) RGB."""
    canvas = _canvas(scene)
    for item in scene.objects:
        left, top, right, bottom = item.box
        height, width = item.ink.shape
        inner = (_RIM, _RIM, width - _RIM, height - _RIM)
        ink = Image.fromarray(item.ink)
        stroke = ink.resize((right - left, bottom - top), Image.Resampling.BICUBIC, inner)
        cover = np.clip(np.asarray(stroke) * _GAIN, 0, 1)[..., None]  # (h, w, 1)
        canvas[top:bottom, left:right] *= 1 - cover
        canvas[top:bottom, left:right] += cover * np.array(item.rgb, dtype=np.float32)
    if scene.card is not None:
        (left, top), side = POSITIONS[scene.card], scene.size / GRID
        canvas[int(top * side) : int((top + 1) * side), int(left * side) : int((left + 1) * side)] = _CARD
    return Image.fromarray(canvas.round().astype(np.uint8))


def encode_scene(scene: Scene) -> str:
    """URL-safe base64 of the drawn scene as a JPEG file of high quality."""
    file = io.BytesIO()
    render(scene).save(file, "JPEG", quality=92, subsampling=0)  # subsampling smears thin colored strokes
    return base64.urlsafe_b64encode(file.getvalue()).decode("ascii")


def _canvas(scene: Scene) -> np.ndarray:
    """(size, size, 3) float32: a dark tone with smooth spots and a little grain."""
    rng = np.random.default_rng(scene.texture_seed)
    tone = rng.uniform(*_CANVAS_LIGHT) + rng.uniform(-8, 8, size=3)
    spots = Image.fromarray(rng.integers(0, 256, size=(6, 6), dtype=np.uint8))
    smooth = np.asarray(spots.resize((scene.size, scene.size), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.standard_normal((scene.size, scene.size), dtype=np.float32)
    texture = (smooth / 255 - 0.5) * 16 + grain * 2
    return np.clip(texture[..., None] + tone.astype(np.float32), 0, 255)
