"""Rows of pretraining without an image-text pair: text and image infilling, object detection, text-to-image.

They make up the second part of a batch; their images have twice `code_image_size` as sides.
"""

import random
from dataclasses import dataclass, field
from typing import NotRequired, Optional, cast

import torch
from torch import Tensor

from data.base import OFADataset
from data.boxes import parse_box, quantize
from data.crops import jittered_crop
from data.image_gen import code_ids, drawn_text
from data.images import standard_transform
from data.masking import MaskingOptions, check_masking, infill, word_starts
from data.prompts import prompt
from data.refcoco import RefcocoData
from data.row_index import Row, Rows
from data.sample import Example, Sample
from data.tasks import PRETRAINING
from data.text import Vocabulary, require_words
from utils.constants import SEPARATOR
from utils.errors import quoted

# What the log calls the losses of the objectives.
OBJECTIVES = ("caption", "vqa", "grounding", "region_caption", "matching", "text", "image", "detection", "image_gen")
CONFIDENCE = 2.0  # weight of the second part in the loss
LONGEST_TEXT, KEPT_TEXT = 512, 256  # ids read, and how many of the last of them are used


@dataclass
class PretrainData(MaskingOptions, RefcocoData):
    """Options of the rows of pretraining."""

    text_data: Optional[str] = field(default=None, metadata={"help": "TSV file of texts; none if not given"})
    image_data: Optional[str] = field(
        default=None, metadata={"help": "TSV file of images with image codes; none if not given"}
    )
    detection_data: Optional[str] = field(
        default=None, metadata={"help": "TSV file of images with objects; none if not given"}
    )
    image_gen_data: Optional[str] = field(
        default=None, metadata={"help": "TSV file of texts with the image codes of what they say; none if not given"}
    )
    text_selected_cols: Optional[str] = field(default=None, metadata={"help": "columns of --text-data: id, text"})
    image_selected_cols: Optional[str] = field(
        default=None, metadata={"help": "columns of --image-data: id, image, codes"}
    )
    detection_selected_cols: Optional[str] = field(
        default=None, metadata={"help": "columns of --detection-data: id, image, objects"}
    )
    image_gen_selected_cols: Optional[str] = field(
        default=None, metadata={"help": "columns of --image-gen-data: id, text, codes"}
    )
    text_ratio: float = field(default=0.25, metadata={"help": "rows of --text-data per row of the main file"})
    image_ratio: float = field(default=0.125, metadata={"help": "rows of --image-data per row of the main file"})
    detection_ratio: float = field(
        default=0.125, metadata={"help": "rows of --detection-data per row of the main file"}
    )
    image_gen_ratio: float = field(
        default=0.125, metadata={"help": "rows of --image-gen-data per row of the main file"}
    )
    neg_sample_dir: Optional[str] = field(
        default=None, metadata={"help": "folder of all_captions.txt, object.txt and type2ans.json, for matching"}
    )
    matching_weight: float = field(
        default=1.0, metadata={"help": "weight of image-text matching in the loss, where its two tokens count little"}
    )
    code_image_size: int = field(
        default=128, metadata={"help": "side of the images that image codes describe (pixels)"}
    )
    largest_short_side: int = field(
        default=480, metadata={"help": "images with a text are resized to a short side of up to this many pixels"}
    )
    no_rand_augment: bool = field(
        default=False, metadata={"help": "leave out RandAugment, whose steps are meant for images of 384 pixels"}
    )
    pretrain_seed: int = field(default=7, metadata={"help": "seed of the augmentation of images with captions"})


@dataclass
class PretrainExample(Example):
    """An example of one of the objectives.

    Attributes:
        objective: one of `OBJECTIVES`; `objective` in the batch is its number.
        source_ids: follow the source text.
        sees_image: False = the image is there for the batch's shape only.
        second: another example about the same image.
    """

    objective: str = ""
    source_ids: list[int] = field(default_factory=list)
    sees_image: bool = True
    second: "PretrainExample | None" = None


class PretrainSample(Sample):
    """A sample, and another one from the same row that goes into the same batch."""

    second: NotRequired[Sample]


class PretrainRows(OFADataset):
    """Rows of one of the files."""

    config: PretrainData

    def _encode(self, index: int, example: Example) -> PretrainSample:
        assert isinstance(example, PretrainExample)
        sample = cast(PretrainSample, super()._encode(index, example))
        if example.source_ids:
            source = sample["source"]
            sample["source"] = torch.cat([source[:-1], torch.tensor(example.source_ids), source[-1:]])
        sample["extras"] = {**example.extras, "objective": torch.tensor(OBJECTIVES.index(example.objective))}
        if not example.sees_image:
            sample["patch_mask"] = torch.tensor([False])
        if example.second is not None:
            sample["second"] = self._encode(index, example.second)
        return sample

    def _check_length(self, sample: Sample) -> None:
        super()._check_length(sample)
        if "second" in sample:
            super()._check_length(cast(PretrainSample, sample)["second"])

    def location_ids(self, boxes: Tensor) -> list[int]:
        """Ids of location tokens, four a box, of boxes (..., 4) in pixels."""
        bins = quantize(boxes.flatten(), self.config.max_image_size, self.config.num_bins)
        return [self.vocab.bin_id(number) for number in bins]


class ExtraRows(PretrainRows):
    """What the files of the second part share: side of the image, weight in the loss, kind of target."""

    makes_codes = False

    def __init__(
        self, rows: Rows, vocab: Vocabulary, config: PretrainData, split: str, seed: int = 1, epoch: int = 1
    ) -> None:
        super().__init__(rows, vocab, config, split, seed, epoch)
        self.side = 2 * config.code_image_size
        self.transform = standard_transform(self.side, config.imagenet_default_mean_and_std)
        self.extras = {"conf": torch.tensor(CONFIDENCE), "code_masks": torch.tensor(self.makes_codes)}


class TextInfillingDataset(ExtraRows):
    """Rows of id and text: the text is to be restored from a corrupted copy (`data.masking`)."""

    columns = PRETRAINING["pretrain_text"].names

    def __init__(
        self, rows: Rows, vocab: Vocabulary, config: PretrainData, split: str, seed: int = 1, epoch: int = 1
    ) -> None:
        super().__init__(rows, vocab, config, split, seed, epoch)
        check_masking(config)
        self.starts = word_starts(vocab)
        self.prompt = vocab.encode(prompt("pretrain text", vocab.bpe))

    def example(self, row: Row, rng: random.Random) -> PretrainExample:
        """The last of the first ids of a text, masked in the source and whole in the target."""
        uniq_id, text = row
        return self.infilling(uniq_id, text, torch.Generator().manual_seed(rng.getrandbits(63)))

    def infilling(self, uniq_id: str, text: str, generator: torch.Generator) -> PretrainExample:
        """The example of a text, corrupted as the generator says; ValueError for a text without words."""
        text = require_words(text.strip().lower(), "text")
        ids = self.vocab.encode(" " + text)[:LONGEST_TEXT][-KEPT_TEXT:]
        whole = torch.tensor([int(self.vocab.bos), *ids, int(self.vocab.eos)])
        masked = infill(whole, self.starts, self.vocab.mask, self.config, generator)[1:-1].tolist()
        return PretrainExample(
            uniq_id,
            "",
            ids,
            torch.zeros(3, self.side, self.side),
            extras=self.extras,
            objective="text",
            source_ids=[*self.prompt[:-2], *masked, *self.prompt[-2:]],
            sees_image=False,
        )


class ImageInfillingDataset(ExtraRows):
    """Rows of id, image and the codes of its middle, which is blanked: the codes are to be told."""

    columns = PRETRAINING["pretrain_image"].names
    makes_codes = True

    def example(self, row: Row, rng: random.Random) -> PretrainExample:
        """An image without its middle, and the codes of that row by row."""
        uniq_id, data, column = row
        image = self.image(data)
        if image.size != (self.side, self.side):
            raise ValueError(f"the image is {image.width} x {image.height} pixels, not {self.side} x {self.side}")
        pixels = self.transform(image)
        quarter = self.side // 4
        pixels[:, quarter:-quarter, quarter:-quarter] = 0
        return PretrainExample(
            uniq_id,
            prompt("pretrain image", self.vocab.bpe),
            code_ids(column, self.config.code_image_size, self.vocab),
            pixels,
            extras=self.extras,
            objective="image",
        )


class TextToImageDataset(ExtraRows):
    """Rows of id, text and the codes of the whole image it describes: no part of the original's pretraining."""

    columns = PRETRAINING["pretrain_image_gen"].names
    makes_codes = True

    def example(self, row: Row, rng: random.Random) -> PretrainExample:
        """The prompt of text-to-image generation, and the codes."""
        uniq_id, text, column = row
        caption = drawn_text(text, self.config.max_src_length)
        return PretrainExample(
            uniq_id,
            prompt("image_gen", self.vocab.bpe).format(caption=caption),
            code_ids(column, self.config.code_image_size, self.vocab),
            torch.zeros(3, self.side, self.side),
            extras=self.extras,
            objective="image_gen",
            sees_image=False,
        )


class DetectionDataset(ExtraRows):
    """Rows of id, image and objects `x0,y0,x1,y1,category_id,name` joined by `&&`, boxes in pixels."""

    columns = PRETRAINING["pretrain_detection"].names

    def example(self, row: Row, rng: random.Random) -> PretrainExample:
        """A random crop of the image with the objects that are in it."""
        return self.detection(row, rng, torch.Generator().manual_seed(rng.getrandbits(63)))

    def detection(self, row: Row, rng: random.Random, generator: torch.Generator) -> PretrainExample:
        """The example of a row, cropped as rng and generator say; its target may name no object."""
        uniq_id, data, column = row
        image = self.image(data)
        boxes, names = parse_objects(column, *image.size)
        image, boxes = jittered_crop(image, boxes, self.side, rng, generator)
        target: list[int] = []
        for box, name in zip(boxes, names, strict=True):
            if (box[2:] > box[:2]).all():
                target += [*self.location_ids(box), *self.vocab.encode(" " + name)]
        source = prompt("pretrain detection", self.vocab.bpe)
        return PretrainExample(uniq_id, source, target, image, extras=self.extras, objective="detection")


def parse_objects(column: str, width: int, height: int) -> tuple[Tensor, list[str]]:
    """Boxes (N, 4) in pixels and names of the objects on an image; ValueError if there are none or one is wrong."""
    if not column.strip():
        raise ValueError("the row has no objects")
    boxes, names = [], []
    for item in column.split(SEPARATOR):
        parts = item.strip().split(",", 5)  # ends are stripped, a blank before the name is part of it, as released
        if len(parts) != 6 or not parts[5].strip():
            raise ValueError(f"the object {quoted(item)} is not x0,y0,x1,y1,category_id,name")
        boxes.append(parse_box(",".join(parts[:4]), width, height))
        names.append(parts[5])
    return torch.tensor(boxes), names
