"""The sample contract: what a row means (Example), what it becomes (Sample), what the model gets (Batch).

Letters in shapes: B batch, S source length, T target length, V vocabulary, R image side.
"""

from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
from PIL import Image
from torch import Tensor


@dataclass
class Example:
    """Plain values of one row; a task fills what it uses, the rest stays None.

    Texts are complete: they are encoded exactly as they stand, leading space included.
    """

    id: str
    source: str
    target: str
    image: bytes | Image.Image | None = None  # encoded file or decoded picture
    references: list[str] | None = None  # what a generated text is compared with


class Sample(TypedDict):
    """One row as tensors; ids are int64."""

    row: int  # number of the row in its file, from 0
    id: str
    source: Tensor  # (S,) bos, text, eos
    target: Tensor  # (T,) text, eos
    prev_output_tokens: Tensor  # (T,) bos, then the target without its last token
    patch_image: NotRequired[Tensor]  # (3, R, R) float32
    patch_mask: NotRequired[Tensor]  # (1,) bool, True: the image counts
    constraint_mask: NotRequired[Tensor]  # (T, V) bool, True: the token is allowed
    references: NotRequired[list[str]]


class SkippedRow(NamedTuple):
    """Takes the place of a sample whose row is bad, so that the batch can count it."""

    message: str


class NetInput(TypedDict):
    """What the model is called with."""

    src_tokens: Tensor  # (B, S) int64, padded on the right
    src_lengths: Tensor  # (B,) int64, tokens without padding
    prev_output_tokens: Tensor  # (B, T) int64
    patch_images: NotRequired[Tensor]  # (B, 3, R, R) float32
    patch_masks: NotRequired[Tensor]  # (B,) bool


class Batch(TypedDict, total=False):
    """Collated samples; {} for no samples, only `skipped` when every row of the batch is bad."""

    rows: np.ndarray  # (B,) int64, numbers of the rows in their file
    id: np.ndarray  # (B,) str
    nsentences: int  # B
    ntokens: int  # target tokens without padding
    net_input: NetInput
    target: Tensor  # (B, T) int64
    constraint_masks: Tensor  # (B, T, V) bool, True in padded positions
    references: list[list[str]]  # B lists
    skipped: list[str]  # one message per bad row left out; absent when there is none
