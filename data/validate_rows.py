"""What each row of a data file is like, for `data.validate`: read by several processes, in the order of the file."""

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.base import OFADataset
from data.images import Decoded, image_file
from data.sample import Example, Sample, SkippedRow, answer_ids
from utils.constants import SEPARATOR
from utils.errors import UserError, quoted

BATCH = 32  # rows that a process hands over together
UNLIMITED = 10**9
LIMITS = ("max_src_length", "max_tgt_length", "max_object_length")  # options that cut texts


class Seen(NamedTuple):
    """An image that was decoded: digest of its file, sides in pixels, Pillow's mode of the stored pixels."""

    digest: bytes
    width: int
    height: int
    mode: str


class Found(NamedTuple):
    """What a row is like.

    That an image is stored turned is no fault; the message ends with `LYING`.

    Attributes:
        message: what is wrong (file, line, reason); None = nothing. unknown: its words that are not in the vocabulary.
        id: None where the row cannot be read. images: those that were decoded.
        tokens: of source and target, before they are cut; None for a target that is no text. cut: whether they are.
        answer: the one to learn, of tasks that choose. outside: it is not in the answer set.
    """

    message: str | None
    unknown: list[str]
    id: str | None = None
    images: tuple[Seen, ...] = ()
    tokens: tuple[int | None, int | None] = (None, None)
    cut: tuple[bool, bool] = (False, False)
    answer: str | None = None
    outside: bool = False


class _Checked(Dataset[Found]):
    """What the rows of a dataset are like; their images are decoded and not resized."""

    def __init__(self, dataset: OFADataset) -> None:
        self.dataset = copy.copy(dataset)
        self.dataset.transform = _unresized
        self.dataset.on_image = self._see
        self.images: list[Seen] = []  # of the row that is being read
        names = {field.name for field in fields(dataset.config)}
        self.limits = {name: getattr(dataset.config, name) for name in LIMITS if name in names}
        self.whole = copy.copy(self.dataset)
        unlimited: dict[str, Any] = dict.fromkeys(self.limits, UNLIMITED)
        self.whole.config = replace(dataset.config, **unlimited)
        self.whole.on_image = None

    def _see(self, data: bytes, decoded: Decoded) -> None:
        self.images.append(Seen(_digest(data), *decoded.image.size, decoded.mode))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Found:
        unknown = self.dataset.vocab.unknown_words
        unknown.clear()
        self.images = []
        item = self.dataset[index]
        images, words = tuple(self.images), [word for word in unknown if word != SEPARATOR]
        if isinstance(item, SkippedRow):
            return Found(item.message, [], images=images)
        answers = item["extras"].get("ref_dict")
        answer = max(answers, key=answers.get) if answers else None
        outside = answer is not None and bool(item["target"].eq(self.dataset.vocab.pad).all())
        message = min(item.get("image_notes", ()), default=None)
        if outside:  # evaluation tolerates it, a check reports it
            place = f"{self.dataset.rows.path}, {self.dataset.rows.place(index)}"
            message = f"{place}: the answer {quoted(answer)} is not in the answer set"
        return Found(message, words, item["id"], images, *self._lengths(index, item), answer, outside)

    def _lengths(self, index: int, sample: Sample) -> tuple[tuple[int | None, int | None], tuple[bool, bool]]:
        """Tokens of source and target before they are cut, and whether they are."""
        source, answer = len(sample["source"]) - 2, answer_ids(sample)
        vocab = self.dataset.vocab
        target = len(answer) - int(answer[-1] in (vocab.eos, vocab.pad)) if len(answer) else 0
        is_text = not sample["extras"].get("code_masks")
        cut = False, False
        least = min(limit for name, limit in self.limits.items() if name != "max_tgt_length")
        # What was cut to so many words or tokens has at least so many tokens.
        if source >= least or (is_text and target >= self.limits["max_tgt_length"]):
            short, whole = (self._ids(data.example_of(index)) for data in (self.dataset, self.whole))
            cut = short[0] != whole[0], is_text and short[1] != whole[1]
            source, target = max(source, len(whole[0])), max(target, len(whole[1]))
        return (source, target if is_text else None), cut

    def _ids(self, example: Example) -> tuple[list[int], list[int]]:
        """Ids of source and target, as far as the model reads them."""
        source, target = (
            self.dataset.vocab.encode(side) if isinstance(side, str) else side
            for side in (example.source, example.target)
        )
        return source[: example.max_source_tokens], target[: example.max_target_tokens]


class _Digests(Dataset[bytes | None]):
    """Digests of the images of rows; None for a row whose image cannot be read."""

    def __init__(self, dataset: OFADataset) -> None:
        self.rows, self.column = dataset.rows, dataset.columns.index("image")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> bytes | None:
        try:
            return _digest(image_file(self.rows[index][self.column]))
        except (UserError, ValueError, IndexError):
            return None


def look_at_rows(dataset: OFADataset, workers: int) -> Iterator[Found]:
    """What each row is like, in order, found by so many further processes."""
    yield from _in_order(_Checked(dataset), workers)


def digests(dataset: OFADataset, workers: int) -> Iterator[bytes | None]:
    """What tells apart the image files of the rows, in order; None for an image that cannot be read.

    Raises UserError for rows without images.
    """
    if "image" not in dataset.columns:
        raise UserError("--against compares images, and these rows have none: leave it out.")
    yield from _in_order(_Digests(dataset), workers)


def _in_order(dataset: Dataset[Any], workers: int) -> Iterator[Any]:
    for rows in DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=list):
        yield from rows


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _unresized(image: Image.Image) -> Tensor:
    """In place of the transform, which takes most of the time and refuses only an image without pixels."""
    if 0 in image.size:
        raise ValueError(f"the image is {image.width} x {image.height} pixels")
    return torch.zeros(3, 1, 1)
