"""The forms in which an image may be given."""

import logging
import os
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from data.images import MAX_PIXELS, check_pixels, decode, to_rgb, turned
from data.named_rows import URL
from utils.errors import UserError
from utils.files import read_file


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as `OFAPredictor.prepare` leaves it.

    Attributes:
        size: width and height as given. pixels: (3, R, R), resized and normalized.
    """

    size: tuple[int, int]
    pixels: Tensor


ImageFile = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
ImageLike = ImageFile | PreparedImage

logger = logging.getLogger(__name__)


def read_image(image: ImageFile, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """RGB image of a path, an encoded file (bytes), a Pillow image or a uint8 array (H, W, 3).

    It stands upright, as its EXIF orientation says, and what is transparent is white. What is there of a file that
    is cut off is taken, with a warning.

    Raises:
        UserError: a missing or undecodable file, one of more than `max_pixels` pixels or of numbers without a known
            range, an array of another form, an image without pixels.
    """
    name = f"The image {image}" if isinstance(image, str | os.PathLike) else "The image"
    try:
        decoded = _decode(image, name, max_pixels)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and URL.match(str(image)):
            raise UserError(f"{name} is a URL: download it and pass the path of the file.") from error
        raise UserError(f"{name} cannot be read ({error.strerror or error}): check the path.") from error
    except (ValueError, SyntaxError, MemoryError) as error:
        raise UserError(f"{name} cannot be used: {str(error) or 'there is not enough memory'}.") from error
    if 0 in decoded.size:
        raise UserError(f"{name} is {decoded.width} x {decoded.height} pixels: pass an image that is not empty.")
    decoded.info.clear()  # it is upright and opaque now, whatever was said of the file
    return decoded


def _decode(image: ImageFile, name: str, max_pixels: int) -> Image.Image:
    if isinstance(image, str | os.PathLike | bytes):
        data = image if isinstance(image, bytes) else read_file(image)
        decoded, damaged, *_ = decode(data, max_pixels, upright=True, on_white=True)
        if damaged:
            if all(low == high for low, high in decoded.getextrema()):  # type: ignore[misc]
                raise ValueError("it is damaged, and nothing of it can be seen")
            logger.warning("%s is cut off or damaged: using the readable part.", name)
        return decoded
    if isinstance(image, Image.Image):
        check_pixels(image.size, max_pixels)
        image.load()
        return to_rgb(turned(image), on_white=True)
    if not isinstance(image, np.ndarray):
        raise ValueError(f"it is a {type(image).__name__}, not a path, bytes, a Pillow image or an array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the array is {image.dtype} {image.shape}, not uint8 (height, width, 3)")
    check_pixels((image.shape[1], image.shape[0]), max_pixels)
    return Image.fromarray(image)
