"""Referring expressions: a phrase and the box it describes, as four location tokens."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.base import DataConfig, OFADataset
from data.boxes import clamp_boxes, dequantize, parse_box, quantize
from data.prompts import prompt
from data.row_index import Row
from data.sample import Example
from data.tasks import TASKS
from data.text import Vocabulary, normalize_caption


@dataclass
class RefcocoData(DataConfig):
    """Options of the rows of referring expressions."""

    max_image_size: int = field(
        default=512, metadata={"help": "coordinates are divided by this, whatever the size of the image"}
    )


def source_text(text: str, config: DataConfig, bpe: str) -> str:
    """What the encoder reads of a phrase."""
    return prompt("refcoco", bpe).format(text=normalize_caption(text, config.max_src_length))


def resize_ratios(width: int, height: int, config: DataConfig) -> Tensor:
    """Factors (2,) by which width and height of an image change when it is resized."""
    return torch.tensor([config.patch_image_size / side for side in (width, height)])


def location_range(vocab: Vocabulary) -> str:
    """The ids of the location tokens, as `GenerationConfig.constraint_range` takes them."""
    return f"{vocab.bin_start},{vocab.bin_start + vocab.num_bins}"


def predicted_boxes(tokens: Sequence[Tensor], ratios: Tensor, vocab: Vocabulary, config: RefcocoData) -> Tensor:
    """Boxes (K, 4) in pixels of the original image, cut at its borders.

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

    columns = TASKS["refcoco"].names
    left_out = 1
    config: RefcocoData

    def example(self, row: Row, rng: random.Random) -> Example:
        """A phrase, and its box in the resized image."""
        uniq_id, data, text, region = row
        self.check_words(text, "phrase")
        image = self.image(data)
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
