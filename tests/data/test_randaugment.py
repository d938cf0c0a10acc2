"""The ten operations on images whose outcome is known."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from data import randaugment
from data.randaugment import OPERATIONS, rand_augment

WIDTH, HEIGHT = 60, 44
SEEDS = {1: 1, -1: 0}  # sign -> a seed of numpy that draws it first
Y, X = np.mgrid[:HEIGHT, :WIDTH].astype(float)
Coordinates = tuple[np.ndarray, np.ndarray]


def image_of(*channels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack(np.broadcast_arrays(*channels), axis=-1).astype(np.uint8))


def photo(low: int = 0, high: int = 255) -> Image.Image:
    pixels = np.random.default_rng(0).integers(low, high + 1, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = low, high
    return Image.fromarray(pixels)


def applied(name: str, image: Image.Image, sign: int = 1) -> np.ndarray:
    np.random.seed(SEEDS[sign])
    return np.asarray(OPERATIONS[name](image))


def turned(sign: int) -> Coordinates:
    """Where the pixels of an image turned by 21 degrees come from."""
    angle = np.radians(21 * sign)
    dx, dy = X - WIDTH / 2, Y - HEIGHT / 2
    return WIDTH / 2 + np.cos(angle) * dx + np.sin(angle) * dy, HEIGHT / 2 - np.sin(angle) * dx + np.cos(angle) * dy


SOURCES: dict[str, Callable[[int], Coordinates]] = {
    "ShearX": lambda sign: (X - sign * 0.21 * Y, Y),
    "ShearY": lambda sign: (X, Y - sign * 0.21 * X),
    "TranslateX": lambda sign: (X + sign * 7, Y),
    "TranslateY": lambda sign: (X, Y + sign * 7),
    "Rotate": turned,
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", SOURCES)
def test_pixels_come_from_where_they_should(name: str, sign: int) -> None:
    moved = applied(name, image_of(3 * X, 4 * Y, 2 * X + Y), sign)
    x, y = SOURCES[name](sign)
    inside = (x >= 0) & (x <= WIDTH - 1) & (y >= 0) & (y <= HEIGHT - 1)
    expected = np.stack([3 * x, 4 * y, 2 * x + y], axis=-1)
    assert 0.5 < inside.mean() < 1
    assert np.abs(moved[inside] - expected[inside]).max() <= 0.51  # rounding
    far_outside = (x < -1) | (x > WIDTH) | (y < -1) | (y > HEIGHT)
    assert far_outside.any() and (moved[far_outside] == 128).all()


def test_edges_blend_into_gray() -> None:
    sheared = applied("ShearX", Image.new("RGB", (WIDTH, HEIGHT), (28, 28, 28)))
    # Row 1 starts 0.21 of a pixel left of the image.
    assert sheared[1, 0].tolist() == [49] * 3  # 28 + 0.21 * 100


def test_contrast_of_channels_with_and_without_a_zero() -> None:
    full, dim = photo(0, 200), photo(1, 200)
    stretched = np.asarray(ImageOps.autocontrast(full))
    assert np.array_equal(applied("AutoContrast", full), stretched)
    mixed = Image.merge("RGB", (full.getchannel(0), dim.getchannel(1), Image.new("L", full.size, 77)))
    result = applied("AutoContrast", mixed)
    assert np.array_equal(result[..., 0], stretched[..., 0])
    assert (result[..., 1] == 255).all()
    assert (result[..., 2] == 77).all()


def test_brightness_is_clipped() -> None:
    assert np.array_equal(applied("Brightness", photo()), np.minimum(np.asarray(photo()) * 1.36, 255).astype(np.uint8))


def test_sharpness_wraps_round() -> None:
    soft = photo(100, 130)
    difference = applied("Sharpness", soft).astype(int) - np.asarray(ImageEnhance.Sharpness(soft).enhance(1.36))
    assert np.abs(difference).max() <= 1  # no value leaves the byte
    # One bright pixel on black: 255 + 0.36 * (255 - 255 * 5 / 13) wraps, and so do its neighbors below 0.
    pixels = np.zeros((5, 5, 3), np.uint8)
    pixels[2, 2] = 255
    result = applied("Sharpness", Image.fromarray(pixels))
    assert result[2, 2, 0] == int(255 + 0.36 * (255 - 98)) - 256
    assert result[1, 1, 0] == int(0.36 * -20) + 256
    assert (result[0] == 0).all()


def test_equalize_is_pillows() -> None:
    assert np.array_equal(applied("Equalize", photo(3, 90)), np.asarray(ImageOps.equalize(photo(3, 90))))


def test_two_of_ten_are_drawn_and_half_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def note(name: str) -> Callable[[Image.Image], Image.Image]:
        def operation(image: Image.Image) -> Image.Image:
            seen.append(name)
            return image

        return operation

    monkeypatch.setattr(randaugment, "OPERATIONS", {name: note(name) for name in OPERATIONS})
    np.random.seed(0)
    counts = set()
    for _ in range(2000):
        before = len(seen)
        rand_augment(photo())
        counts.add(len(seen) - before)
    assert counts == {0, 1, 2}
    assert set(seen) == set(OPERATIONS) and len(OPERATIONS) == 10
    assert 1850 < len(seen) < 2150
    assert all(140 < seen.count(name) < 260 for name in OPERATIONS)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (480, 3)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_takes_every_size(name: str, size: tuple[int, int]) -> None:
    image = OPERATIONS[name](Image.new("RGB", size, (9, 8, 7)))
    assert (image.mode, image.size) == ("RGB", size)
