"""The recipe's own RandAugment: two of ten operations at a fixed strength, on bytes.

Cubuk et al., RandAugment (2020), as released with OFA, where bytes wrap round in two of the operations.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

COUNT = 2
PROBABILITY = 0.5
# Strength 7 of 10.
ENHANCE = 0.7 * 1.8 + 0.1
SHEAR = math.degrees(math.atan(0.7 * 0.3))
TRANSLATION = 7  # pixels
ROTATION = 0.7 * 30  # degrees
GRAY = 128  # what moves in from outside

_PIXEL_CENTER = (0.5, 0.5)  # of the top left pixel


def rand_augment(image: Image.Image) -> Image.Image:
    """Image of the same size after two operations drawn with replacement, each of which is left out half the time.

    All draws come from numpy's global generator; see `data.augment.seeded`.

    Args:
        image: RGB.
    """
    for name in np.random.choice(list(OPERATIONS), COUNT):
        if np.random.random() <= PROBABILITY:
            image = OPERATIONS[name](image)
    return image


def auto_contrast(image: Image.Image) -> Image.Image:
    """Stretch each channel that has a 0 up to 255; a channel without a 0 turns white, as released.

    There the negated minimum is a byte: it wraps round, and the table saturates.
    """
    table: list[int] = []
    pixels = np.asarray(image).reshape(-1, 3)  # (H * W, 3)
    for low, high in zip(pixels.min(axis=0).tolist(), pixels.max(axis=0).tolist(), strict=True):
        if low == high:
            table += range(256)
        elif low > 0:
            table += [255] * 256
        else:
            table += _clipped(255 / high)
    return image.point(table)


def brightness(image: Image.Image) -> Image.Image:
    """Brighter by a fixed factor, clipped."""
    return image.point(_clipped(ENHANCE) * 3)


def sharpness(image: Image.Image) -> Image.Image:
    """Move away from the smoothed image; values beyond a byte wrap round, as released."""
    smooth = np.asarray(image.filter(ImageFilter.SMOOTH), np.float32)  # (H, W, 3), frame unchanged
    sharp = smooth + np.float32(ENHANCE) * (np.asarray(image, np.float32) - smooth)
    return Image.fromarray(sharp.astype(np.int32).astype(np.uint8))


def shear_x(image: Image.Image) -> Image.Image:
    """Rows move sideways by 0.21 of their height, left or right."""
    return _affine(image, shear=(-SHEAR * _sign(), 0.0))


def shear_y(image: Image.Image) -> Image.Image:
    """Columns move by 0.21 of their distance from the left, up or down."""
    return _affine(image, shear=(0.0, -SHEAR * _sign()))


def translate_x(image: Image.Image) -> Image.Image:
    """Seven pixels left or right."""
    return _shifted(image, TRANSLATION * _sign(), 0)


def translate_y(image: Image.Image) -> Image.Image:
    """Seven pixels up or down."""
    return _shifted(image, 0, TRANSLATION * _sign())


def rotate(image: Image.Image) -> Image.Image:
    """21 degrees either way."""
    # The reference turns around pixel (W/2, H/2) and draws this sign the other way round.
    center = (image.width / 2 + _PIXEL_CENTER[0], image.height / 2 + _PIXEL_CENTER[1])
    return _affine(image, angle=ROTATION * _sign(), center=center)


OPERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {  # the order fixes what a seed draws
    "Identity": lambda image: image,
    "AutoContrast": auto_contrast,
    "Equalize": ImageOps.equalize,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
}


def _sign() -> int:
    return -1 if np.random.random() > 0.5 else 1


def _clipped(factor: float) -> list[int]:
    """Table of a byte times a factor."""
    return [min(int(value * factor), 255) for value in range(256)]


def _shifted(image: Image.Image, left: int, up: int) -> Image.Image:
    matrix = (1, 0, left, 0, 1, up)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=(GRAY,) * 3)


def _affine(
    image: Image.Image,
    angle: float = 0.0,
    shear: tuple[float, float] = (0.0, 0.0),
    center: tuple[float, float] = _PIXEL_CENTER,
) -> Image.Image:
    """Bilinear warp; angle and shear in degrees, center in pixels from the top left corner."""
    from torchvision.transforms import InterpolationMode  # seconds to import, and few tasks augment
    from torchvision.transforms import functional as tvf

    # torchvision pads with 0 before it interpolates, so gray has to be 0: its `fill` would darken the edges.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - GRAY  # (3, H, W)
    warped = tvf.affine(pixels, angle, [0, 0], 1.0, list(shear), InterpolationMode.BILINEAR, center=list(center))
    return Image.fromarray((warped + GRAY).round_().byte().permute(1, 2, 0).numpy())
