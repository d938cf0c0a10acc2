"""The forms in which a picture may be given."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import decode_image
from utils.errors import UserError

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


def read_image(image: ImageLike) -> Image.Image:
    """RGB picture of a path, an encoded file (bytes), a Pillow picture or a uint8 array (H, W, 3).

    Raises:
        UserError: a missing or undecodable file, an array of another form, a picture without pixels.
    """
    name = f"The image {image}" if isinstance(image, str | os.PathLike) else "The image"
    try:
        picture = _decode(image)
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}): check the path.") from error
    except ValueError as error:
        raise UserError(f"{name} cannot be used: {error}.") from error
    if 0 in picture.size:
        raise UserError(f"{name} is {picture.width} x {picture.height} pixels: give one with pixels.")
    return picture


def _decode(image: ImageLike) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        return decode_image(Path(image).read_bytes())
    if isinstance(image, bytes):
        return decode_image(image)
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, np.ndarray):
        raise ValueError(f"it is a {type(image).__name__}, not a path, bytes, a Pillow picture or an array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the array is {image.dtype} {image.shape}, not uint8 (height, width, 3)")
    return Image.fromarray(image)
