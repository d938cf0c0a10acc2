"""Image column -> bytes -> RGB image -> tensor; all transforms."""

import base64
import contextlib
import io
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError
from torch import Tensor

from utils.errors import UserError

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
REDUCED = 1.5  # how much longer than the square's the sides of an image decoded at a smaller size must be
LARGEST_SIDE = 4096  # of the images that a model sees, in pixels
MAX_PIXELS = 2**28  # 16,384 x 16,384: 0.8 GB in memory as RGB

ImageTransform = Callable[[Image.Image], Tensor]

_FROM_URL_SAFE = str.maketrans("-_", "+/")
_DATA_URL = re.compile(r"data:[^,]{0,100};base64,", re.IGNORECASE)
# A word that no image file is short enough for; "picture" alone would be base64.
_HEADING = re.compile(r"(?=.{,48}$)[a-z_ -]*(image|img|pict|photo|base64|b64|file_?name)[\w -]*", re.IGNORECASE)
_MISSING = ("nan", "none", "null")
PATH = re.compile(r"\w+://.*|.*\.[a-z]\w{1,4}", re.IGNORECASE | re.DOTALL)  # base64 has no colon and no full stop
_ORIENTATION = 0x0112  # EXIF tag -> what makes such an image upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_KEY = "transparency"
_FEW_BITS = {"L;2": 85, "L;4": 17}  # gray levels of 2 and 4 bits: factor to 8 bits
_NO_RANGE = {"I": "32-bit integers", "F": "floating point numbers"}
_ICONS = (b"\0\0\1\0", b"icns")
LONGEST_SIDE = 2**20  # Pillow's table for a resize takes 32 bytes a pixel of it
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose mode I holds 16 bits: Pillow scales the gray values of PPM to them


class TooLargeError(ValueError):
    """An image of more pixels than allowed."""


class Decoded(NamedTuple):
    """A decoded image file.

    Attributes:
        image: RGB. damaged: part of the file is missing or spoiled. lying: EXIF says that the stored image must be
            turned to stand upright. mode: Pillow's name for the pixels of the file.
    """

    image: Image.Image
    damaged: bool
    lying: bool
    mode: str


def image_file(column: str | bytes) -> bytes:
    """The image file that a row holds: its bytes, or their base64; ValueError as of `decode_base64`."""
    return column if isinstance(column, bytes) else decode_base64(column)


def decode_base64(text: str) -> bytes:
    """Bytes of a base64 string in the ordinary or the URL-safe alphabet, or a mixture of both.

    The padding may be missing, and a `data:image/...;base64,` prefix is passed over.

    Raises:
        ValueError: empty, or no base64; the message says what it looks like.
    """
    text = text.strip()
    content = text
    if text[:5].lower() == "data:" and (prefix := _DATA_URL.match(text)):
        content = text[prefix.end() :]
    if _HEADING.fullmatch(text):
        raise ValueError(f"the image column {text!r} looks like a header row: remove it, data files have none")
    if text.lower() in _MISSING:
        raise ValueError(f"the image column {text!r} looks like a missing value: write base64 or leave the row out")
    content = content.translate(_FROM_URL_SAFE)
    if missing := -len(content) % 4:
        content += "=" * missing
    try:
        data = base64.b64decode(content, validate=True)
    except ValueError as error:  # binascii.Error, and characters outside ASCII
        raise ValueError(f"the image is not valid base64 ({_looks_like(text) or str(error).lower()})") from error
    if not data:
        raise ValueError("the image column is empty")
    return data


def _looks_like(text: str) -> str:
    """What somebody wrote in place of base64, '' if that cannot be told."""
    start = repr(text[:40])
    if re.match(r"b['\"]", text):
        return f'{start} looks like the repr of Python bytes: write base64.b64encode(file).decode("ascii")'
    if text[0] in "'\"":
        return f"{start} begins with a quote: write base64 without quotes"
    if len(text) < 4096 and PATH.fullmatch(text):
        return f"{start} looks like the path of a file: write the file's content in base64"
    return ""


def check_pixels(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Raises TooLargeError for an image of more than `max_pixels` pixels, or one that is too thin to be resized."""
    width, height = size
    if max(size) > LONGEST_SIDE:
        raise TooLargeError(f"the image has {width} x {height} pixels, more than {LONGEST_SIDE} in a row")
    if width * height > max_pixels:
        raise TooLargeError(_too_many(f"{width} x {height} = {width * height}", max_pixels))


def _too_many(pixels: str, max_pixels: int) -> str:
    return f"the image has {pixels} pixels, more than the {max_pixels} that --max-image-pixels allows"


class _Globals:
    """Pillow's switches for large and for cut-off images, which it does not have per image.

    Other code in the process relies on them: they are changed while no other thread decodes, and put back.
    """

    def __init__(self) -> None:
        self._free, self._readers = threading.Condition(), 0

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Nobody changes them meanwhile."""
        with self._free:
            self._readers += 1
        try:
            yield
        finally:
            with self._free:
                self._readers -= 1
                self._free.notify_all()

    @contextlib.contextmanager
    def changed(self, max_pixels: int | None, cut_off: bool) -> Iterator[None]:
        """Another limit of pixels, None for none; files that are cut off are read as far as they go, or not."""
        with self._free:
            self._free.wait_for(lambda: not self._readers)
            usual = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, cut_off
            try:
                yield
            finally:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = usual

    def guard_forks(self) -> None:
        """A process that is forked has the usual values, and no threads of its parent to wait for."""
        os.register_at_fork(
            before=lambda: self._free.acquire(),
            after_in_parent=lambda: self._free.release(),
            after_in_child=self.__init__,  # type: ignore[misc]
        )


_globals = _Globals()
_globals.guard_forks()


def _load(data: bytes, max_pixels: int, side: int | None) -> tuple[Image.Image, bool]:
    """The image as stored, loaded, and whether part of the file is missing or spoiled."""
    try:
        with _globals.kept():
            return _opened(data, max_pixels, side), False
    except (TooLargeError, MemoryError):
        raise
    except Exception:  # damaged, or above Pillow's own limit
        pass
    limit = _limit_at_opening(data, max_pixels)
    try:
        with _globals.changed(limit, cut_off=False):
            return _opened(data, max_pixels, side), False
    except (TooLargeError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception:
        with _globals.changed(limit, cut_off=True):
            return _opened(data, max_pixels, side), True


def _opened(data: bytes, max_pixels: int, side: int | None) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    check_pixels(image.size, max_pixels)
    if side is not None:
        least = math.ceil(REDUCED * side)
        image.draft(None, (least, least))
    if image.format == "EPS":
        raise ValueError("it is PostScript, a program that another program would run")
    stored = getattr(image, "tile", None)
    image.load()
    if image.format == "PNG" and stored and (scale := _FEW_BITS.get(str(stored[0][3]))) and _KEY in image.info:
        image.info[_KEY] *= scale  # Pillow scales the pixels, not the gray level that is transparent
    check_pixels(image.size, max_pixels)  # a file in the file may be larger than its header says
    return image


def _limit_at_opening(data: bytes, max_pixels: int) -> int | None:
    """Pillow's limit while a file is opened: icons hold files that are decoded then, for others ours says more."""
    return max_pixels if data.startswith(_ICONS) else None


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an encoded image, from its header; ValueError as of `decode`, as far as the header tells."""
    limit = _limit_at_opening(data, max_pixels)
    with _one_reason(max_pixels), _globals.changed(limit, cut_off=True), Image.open(io.BytesIO(data)) as image:
        check_pixels(image.size, max_pixels)
        _check_range(image)
        return image.size


@contextlib.contextmanager
def _one_reason(max_pixels: int) -> Iterator[None]:
    """Makes a ValueError of all that Pillow raises."""
    try:
        yield
    except TooLargeError:
        raise
    except Image.DecompressionBombError as error:  # a file in the file
        pixels = re.search(r"\d+", str(error))
        raise TooLargeError(_too_many(pixels[0] if pixels else "too many", max_pixels)) from error
    except UnidentifiedImageError as error:
        raise ValueError("the image cannot be decoded: not a format that Pillow reads") from error
    except MemoryError as error:
        raise ValueError("the image cannot be decoded: there is not enough memory for it") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged data
        raise ValueError(f"the image cannot be decoded ({type(error).__name__}: {error})") from error


def decode(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    upright: bool = False,
    on_white: bool = False,
    side: int | None = None,
) -> Decoded:
    """Image of an encoded image file of any format Pillow reads; of a cut-off file what is there.

    Args:
        max_pixels: larger images are refused before any pixel is decoded.
        upright: turn the image as its EXIF orientation says. on_white: see `to_rgb`.
        side: the image will be resized to a square of this side, so that a JPEG file may be decoded at a half, a
            quarter or an eighth of its size where both of its sides stay `REDUCED` times as long; None: whole images.

    Raises:
        ValueError: not an image, too large, without a known range of values, or too damaged to show anything.
    """
    with _one_reason(max_pixels):
        image, damaged = _load(data, max_pixels, side)
    lying = orientation(image) in _TURNS
    return Decoded(to_rgb(turned(image) if upright else image, on_white), damaged, lying, image.mode)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """RGB image of an encoded image file, as stored; see `decode`."""
    return decode(data, max_pixels).image


def orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image: 1 upright, 2 to 8 mirrored or turned; 1 also where it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises many types
        return 1
    return value if isinstance(value, int) else 1


def turned(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation wants to be shown."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, on_white: bool = False) -> Image.Image:
    """RGB copy of an image of any of Pillow's modes.

    16-bit gray becomes its high byte; everything else is as `convert("RGB")` does it.

    Args:
        on_white: put what is transparent on white; otherwise transparency is dropped, and hidden colors show.

    Raises:
        ValueError: 32-bit integers or floating point numbers, whose range is not known.
    """
    if _check_range(image):
        return _from_sixteen_bits(image, on_white)
    if image.mode == "La":  # the only way that Pillow has
        image = image.convert("LA")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")  # type: ignore[return-value]
    if not (on_white and image.has_transparency_data):
        return image.convert("RGB")
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # a color of 16 bits, of which Pillow has kept the high bytes
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB")


def _check_range(image: Image.Image) -> bool:
    """Whether pixels have sixteen bits; ValueError where their range of values is not known."""
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS)
    if image.mode in _NO_RANGE and not sixteen_bits:
        raise ValueError(
            f"the image has {_NO_RANGE[image.mode]} as pixels (mode {image.mode}), whose range is unknown: "
            "save it with 8 or 16 bits"
        )
    return sixteen_bits


def _from_sixteen_bits(image: Image.Image, on_white: bool) -> Image.Image:
    values = np.array(image)  # (H, W) uint16 of either byte order, or int32
    gray = (values >> 8).astype(np.uint8)
    if on_white and isinstance(clear := image.info.get("transparency"), int):
        gray[values == clear] = 255
    return Image.fromarray(gray).convert("RGB")


def normalisation(imagenet: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the three colors of images, ImageNet's or one half."""
    return (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (HALF, HALF)


def standard_transform(size: int, imagenet_mean_std: bool = False, fast: bool = False) -> ImageTransform:
    """Transform an image into a (3, R, R) float32 tensor, R = `size`; the aspect ratio is not kept.

    Pixel-identical to torchvision's Resize (bicubic), ToTensor and Normalize, with fewer copies after the resize.

    Args:
        size: side of the square image in pixels.
        imagenet_mean_std: normalize with the ImageNet mean and deviation instead of 0.5 and 0.5.
        fast: resize with PyTorch's kernel, three times as fast; colors differ by at most 3 of 255.

    Raises:
        UserError: no possible side.
        ValueError: (when called) an image without pixels, or of no known range.
    """
    if not 1 <= size <= LARGEST_SIDE:
        raise UserError(f"patch_image_size is {size}: choose a side of 1 to {LARGEST_SIDE} pixels.")
    mean, std = normalisation(imagenet_mean_std)
    mean_3 = torch.tensor(mean).view(3, 1, 1)
    std_3 = torch.tensor(std).view(3, 1, 1)

    def transform(image: Image.Image) -> Tensor:
        if 0 in image.size:
            raise ValueError(f"the image is {image.width} x {image.height} pixels")
        if fast:
            pixels = _resized(torch.from_numpy(np.array(to_rgb(image))), size)
        else:
            square = to_rgb(image).resize((size, size), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()  # (3, R, R) uint8
        return pixels.float().div_(255).sub_(mean_3).div_(std_3)

    return transform


def _resized(image: Tensor, size: int) -> Tensor:
    """Bytes (H, W, 3) -> (3, R, R), R = `size`, by the filter that Pillow's bicubic resize is."""
    pixels = image.permute(2, 0, 1)[None]
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)[0].contiguous()
