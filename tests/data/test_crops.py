"""Images and boxes through the transforms of pretraining, on worked examples."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from data.boxes import quantize, scale_boxes
from data.crops import centre_crop, crop_around, draw_short_side, jittered_crop, resize_short_side

BOX = torch.tensor([100.0, 120.0, 300.0, 360.0])


def gradient(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row, in 255ths of the side."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, 0 * x], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def test_crop_around_a_box() -> None:
    image = gradient(640, 480)
    resized = resize_short_side(image, 400)
    assert resized.size == (533, 400)
    crop, box = crop_around(resized, scale_boxes(BOX, image, resized), 384)
    assert crop.size == (384, 384) and box.tolist() == pytest.approx([83.28125, 92, 249.84375, 292])
    assert quantize(box, 512, 1000) == [162, 180, 487, 570]
    assert crop.getpixel((0, 0))[:2] == resized.getpixel((0, 8))[:2]  # type: ignore[index]


@pytest.mark.parametrize("corner", [(0.0, 0.0), (533.0, 0.0), (0.0, 400.0), (533.0, 400.0)])
def test_crop_stays_inside(corner: tuple[float, float]) -> None:
    image = gradient(533, 400)
    x, y = corner
    box = torch.tensor([min(x, 500), min(y, 380), max(x, 33), max(y, 20)])
    crop, moved = crop_around(image, box, 384)
    assert moved.min() >= 0 and moved.max() <= 384
    assert (moved[2:] - moved[:2]).tolist() == (box[2:] - box[:2]).tolist()
    assert np.asarray(crop)[..., :2].any(axis=-1).mean() > 0.99  # no black frame


def test_box_wider_than_the_crop_is_cut() -> None:
    _, box = crop_around(gradient(672, 400), torch.tensor([0.0, 10.0, 672.0, 390.0]), 384)
    assert box.tolist() == [0, 2, 384, 382]


@pytest.mark.parametrize(
    "size, side, expected",
    [
        ((640, 480), 480, (640, 480)),
        ((480, 640), 384, (384, 512)),
        ((100, 1000), 400, (400, 672)),
        ((1000, 480), 480, (672, 480)),
        ((30, 30), 384, (384, 384)),
        ((30, 40), 800, (800, 800)),
    ],
)
def test_sides(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert resize_short_side(Image.new("RGB", size), side).size == expected


def test_short_sides_are_drawn_evenly() -> None:
    rng = random.Random(0)
    drawn = [draw_short_side(384, 480, rng) for _ in range(20_000)]
    assert set(drawn) == set(range(384, 481))
    assert np.mean(drawn) == pytest.approx(432, abs=3 * math.sqrt((97**2 - 1) / 12 / 20_000))
    assert draw_short_side(512, 480, rng) == 512  # none from 512 to 480


def test_centre_crop() -> None:
    crop = centre_crop(gradient(533, 400), 384)
    assert crop.size == (384, 384)
    assert crop.getpixel((0, 0))[:2] == gradient(533, 400).getpixel((74, 8))[:2]  # type: ignore[index]


def test_jittered_crop_moves_boxes_with_the_image() -> None:
    """Whatever is drawn, the colors at the corners of a box are those of the original corners."""
    image, generator, rng, scales = gradient(640, 480), torch.Generator().manual_seed(0), random.Random(0), []
    flips = 0
    for _ in range(60):
        crop, boxes = jittered_crop(image, BOX[None], 256, rng, generator)
        assert crop.size == (256, 256) and boxes.shape == (1, 4) and 0 <= boxes.min() and boxes.max() <= 256
        pixels = np.asarray(crop).astype(int)
        flipped = pixels[0, 0, 0] > pixels[0, -1, 0]
        flips += flipped
        x0, y0, x1, y1 = boxes[0].tolist()
        edges = {x1 if flipped else x0: 100 / 640, x0 if flipped else x1: 300 / 640}
        for x, part in edges.items():
            if 2 < x < 253:
                assert pixels[128, int(x), 0] == pytest.approx(255 * part, abs=2.5)
        for y, part in {y0: 120 / 480, y1: 360 / 480}.items():
            if 2 < y < 253:
                assert pixels[int(y), 128, 1] == pytest.approx(255 * part, abs=2.5)
        scales.append(255 / (abs(pixels[-1, 128, 1] - pixels[0, 128, 1]) + 1e-9))
    assert 15 < flips < 45
    assert min(scales) > 0.95 and max(scales) < 1.55 and max(scales) - min(scales) > 0.3


def test_small_image_is_enlarged() -> None:
    box = torch.tensor([[0.0, 0.0, 20.0, 10.0]])
    crop, boxes = jittered_crop(gradient(20, 10), box, 256, random.Random(0), torch.Generator().manual_seed(0))
    assert crop.size == (256, 256) and boxes.tolist() == [[0, 0, 256, 256]]
