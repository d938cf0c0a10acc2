"""Image column -> bytes -> RGB picture -> tensor; all transforms."""

import base64
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

# Pillow has no per-image switch for these: web-crawled data sets hold cut-off and very large pictures.
ImageFile.LOAD_TRUNCATED_IMAGES = True
Image.MAX_IMAGE_PIXELS = None

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FROM_URL_SAFE = str.maketrans("-_", "+/")

ImageTransform = Callable[[Image.Image], Tensor]


def decode_base64(text: str) -> bytes:
    """Bytes of a base64 string in the ordinary or the URL-safe alphabet, or a mixture of both.

    Raises:
        ValueError: empty, foreign characters, or wrong padding.
    """
    try:
        data = base64.b64decode(text.strip().translate(_FROM_URL_SAFE), validate=True)
    except ValueError as error:  # binascii.Error, and characters outside ASCII
        raise ValueError(f"the image is not valid base64 ({str(error).lower()})") from error
    if not data:
        raise ValueError("the image column is empty")
    return data


def decode_image(data: bytes) -> Image.Image:
    """RGB picture of an encoded image file of any format Pillow reads; a cut-off file gives what is there.

    Raises:
        ValueError: not an image, or too damaged to show anything.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError("the image cannot be decoded: it is of no format that Pillow reads") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged data
        raise ValueError(f"the image cannot be decoded ({type(error).__name__}: {error})") from error


def normalisation(imagenet: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the three colours of pictures, ImageNet's or one half."""
    return (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (HALF, HALF)


def standard_transform(size: int, imagenet_mean_std: bool = False) -> ImageTransform:
    """Transform a picture into a (3, R, R) float32 tensor, R = `size`; the aspect ratio is not kept.

    Pixel-identical to torchvision's Resize (bicubic), ToTensor and Normalize, with fewer copies after the resize.

    Args:
        size: side of the square image in pixels.
        imagenet_mean_std: normalise with the ImageNet mean and deviation instead of 0.5 and 0.5.

    Raises:
        ValueError: (when called) a picture without pixels.
    """
    mean, std = normalisation(imagenet_mean_std)
    mean_3 = torch.tensor(mean).view(3, 1, 1)
    std_3 = torch.tensor(std).view(3, 1, 1)

    def transform(image: Image.Image) -> Tensor:
        if 0 in image.size:
            raise ValueError(f"the image is {image.width} x {image.height} pixels")
        square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()  # (3, R, R) uint8
        return pixels.float().div_(255).sub_(mean_3).div_(std_3)

    return transform
