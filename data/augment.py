"""Training-time augmentation of images for classification, and repeatable randomness for it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from data.images import ImageTransform, normalisation
from data.randaugment import rand_augment


@contextmanager
def seeded(rng: random.Random) -> Iterator[None]:
    """Seed the three global generators from a row's own, and give them their old states back at the end.

    timm and torchvision draw from Python's, numpy's and torch's (CPU) global generators; in this block what they
    draw depends on the row alone, whatever the number of workers.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(rng.getrandbits(64))
    np.random.seed(rng.getrandbits(32))
    torch.default_generator.manual_seed(rng.getrandbits(63))  # torch.manual_seed would reseed the GPUs too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def imagenet_train_transform(size: int, imagenet_mean_std: bool = False) -> ImageTransform:
    """Transform an image into a randomly augmented (3, R, R) float32 tensor, R = `size`.

    In this order: random resized crop and flip; timm's RandAugment (2 operations, magnitude 9); the recipe's own
    (`data.randaugment`); normalization; a rectangle of noise in a quarter of the images (Zhong et al., Random
    Erasing, 2020). Draws from the three global generators: call it within `seeded`.

    Args:
        size: side of the square image in pixels.
        imagenet_mean_std: normalize with the ImageNet mean and deviation instead of 0.5 and 0.5.

    Raises:
        ValueError: (when called) an image without pixels.
    """
    from timm.data.transforms_factory import create_transform  # as long to import as everything else that a run needs

    mean, std = normalisation(imagenet_mean_std)
    crop, augment, finish = create_transform(
        size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        mean=mean,
        std=std,
        re_prob=0.25,
        re_mode="pixel",
        separate=True,
    )
    for operation in augment.transforms[0].ops:
        if operation.name == "PosterizeIncreasing":
            operation.aug_fn = _posterize

    def transform(image: Image.Image) -> Tensor:
        if 0 in image.size:
            raise ValueError(f"the image is {image.width} x {image.height} pixels")
        return finish(rand_augment(augment(crop(image.convert("RGB")))))

    return transform


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """The highest bits of each byte; the strongest level keeps none, which Pillow since 13 refuses."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)
