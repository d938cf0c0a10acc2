"""Referring expressions: a phrase and the box it describes, as four location tokens."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.base import DataConfig, OFADataset
from data.prompts import prompt
from data.sample import Example
from data.text import Vocabulary, normalize_caption
from data.tsv import plain_number
from utils.errors import quoted
from utils.metrics import clamp_boxes

SLACK = 1.0  # pixels a box may leave the image by: annotation tools round


@dataclass
class RefcocoData(DataConfig):
    """Options of the rows of referring expressions."""

    max_image_size: int = field(
        default=512, metadata={"help": "coordinates are divided by this, whatever the size of the image"}
    )


def parse_box(text: str, width: int, height: int) -> list[float]:
    """x0, y0, x1, y1 in pixels; ValueError unless it is a box inside a width x height image."""
    try:
        x0, y0, x1, y1 = (float(plain_number(part)) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"the box {quoted(text)} is not x0,y0,x1,y1") from error
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"the box {quoted(text)} has no area: x0 < x1 and y0 < y1 are needed")
    if min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        raise ValueError(f"the box {quoted(text)} is outside the image of {width} x {height} pixels")
    return [x0, y0, x1, y1]


def quantize(box: Tensor, max_image_size: int, num_bins: int) -> list[int]:
    """Bins of coordinates (4,), float32 pixels of the resized image; a little outside counts as the edge."""
    return (box / max_image_size * (num_bins - 1)).round().clamp(0, num_bins - 1).long().tolist()


def dequantize(bins: Tensor, ratios: Tensor, max_image_size: int, num_bins: int) -> Tensor:
    """Pixels (..., 4) of the original image, of bins (..., 4) and resize ratios (..., 2) of width and height."""
    return bins / (num_bins - 1) * max_image_size / torch.cat([ratios, ratios], dim=-1)


def source_text(text: str, config: DataConfig, bpe: str) -> str:
    """What the encoder reads of a phrase."""
    return prompt("refcoco", bpe).format(text=normalize_caption(text, config.max_src_length))


def resize_ratios(width: int, height: int, config: DataConfig) -> Tensor:
    """Factors (2,) by which width and height of a picture change when it is resized."""
    return torch.tensor([config.patch_image_size / side for side in (width, height)])


def location_range(vocab: Vocabulary) -> str:
    """The ids of the location tokens, as `GenerationConfig.constraint_range` takes them."""
    return f"{vocab.bin_start},{vocab.bin_start + vocab.num_bins}"


def predicted_boxes(tokens: Sequence[Tensor], ratios: Tensor, vocab: Vocabulary, config: RefcocoData) -> Tensor:
    """Boxes (K, 4) in pixels of the original picture, cut at its borders.

    Args:
        tokens: K outputs; the first four of each are location tokens. ratios: (2,), see `resize_ratios`.
    """
    bins = torch.stack([output[:4] for output in tokens]).cpu() - vocab.bin_start
    ratios = ratios.float()
    boxes = dequantize(bins.clamp(min=0), ratios.expand(len(bins), 2), config.max_image_size, config.num_bins)
    width, height = (config.patch_image_size / ratios).tolist()
    return clamp_boxes(boxes, width, height)


class RefcocoDataset(OFADataset):
    """Rows of id, image, text and box `x0,y0,x1,y1` in pixels."""

    columns = ("id", "image", "text", "box")
    left_out = 1
    config: RefcocoData

    def example(self, row: tuple[str, ...], rng: random.Random) -> Example:
        """A phrase, and its box in the resized image."""
        uniq_id, data, text, region = row
        self.check_words(text, "phrase")
        image = self.picture(data)
        known = not self.lacks_reference(region)
        box = torch.tensor(parse_box(region, *image.size)) if known else torch.full((4,), math.nan)
        ratios = resize_ratios(*image.size, self.config)
        edges = (box * ratios.repeat(2)).nan_to_num()
        bins = quantize(edges, self.config.max_image_size, self.config.num_bins)
        return Example(
            uniq_id,
            source_text(text, self.config, self.vocab.bpe),
            [self.vocab.bin_id(number) for number in bins],
            image,
            learn=known,
            extras={"region_coords": box, "w_resize_ratios": ratios[0], "h_resize_ratios": ratios[1]},
        )
