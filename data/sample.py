"""The sample contract: what a row means (Example), what it becomes (Sample), what the model gets (Batch).

Letters in shapes: B batch, S source length, T target length, V vocabulary, R image side.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from PIL import Image
from torch import Tensor

DAMAGED = "the image is cut off or damaged, and only what is there is read"
LYING = "the image is stored turned, and read so without --exif-orientation"


@dataclass
class Example:
    """Plain values of one row; a task fills what it uses, the rest keeps its default.

    Texts are complete: they are encoded exactly as they stand, leading space included.

    Attributes:
        id: None = the number of the row.
        source, target: text, or ids without bos and eos; longer ones are cut to `max_*_tokens` ids.
        image: encoded file, decoded image, or finished tensor (3, R, R).
        references: what a generated text is compared with.
        decoder_input: what the decoder reads in place of the target's ids.
        prompt_type: what the decoder is fed before the target: "none" (bos), "src" (the source) or "prev_output"
            (the source without its eos); those positions have no target. None: no decoder prompt in the sample.
        ends: whether end of sentence is predicted.
        learn: False = the loss leaves the row out.
        extras: more keys of the batch; tensors are stacked, other values listed.
    """

    id: str | None
    source: str | list[int]
    target: str | list[int]
    image: bytes | Image.Image | Tensor | None = None
    references: list[str] | None = None
    decoder_input: list[int] | None = None
    prompt_type: str | None = None
    max_source_tokens: int | None = None
    max_target_tokens: int | None = None
    ends: bool = True
    learn: bool = True
    extras: dict[str, Any] = field(default_factory=dict)


class Sample(TypedDict):
    """One row as tensors; ids are int64."""

    row: int  # number of the row in its file, from 0
    id: str
    source: Tensor  # (S,) bos, text, eos
    target: Tensor  # (T,) text, eos
    prev_output_tokens: Tensor  # (T,) bos, then the target without its last token
    patch_image: NotRequired[Tensor]  # (3, R, R) float32
    patch_mask: NotRequired[Tensor]  # (1,) bool, True: the image counts
    constraint_rows: NotRequired[Tensor]  # (E,) int64, target position of an allowed id
    constraint_ids: NotRequired[Tensor]  # (E,) int64, the id; other ids are forbidden there
    decoder_prompt: NotRequired[list[int]]  # what the decoder is fed before an answer, from bos on
    references: NotRequired[list[str]]
    image_notes: NotRequired[list[str]]  # file, line, and `DAMAGED` or `LYING`
    extras: dict[str, Any]


def answer_ids(sample: Sample) -> Tensor:
    """The target without the positions of the decoder prompt, from which nothing is learned."""
    return sample["target"][len(sample.get("decoder_prompt", [0])) - 1 :]


class SkippedRow(NamedTuple):
    """Takes the place of a sample whose row is bad, so that the batch can count it; the message gives no advice."""

    message: str


class NetInput(TypedDict):
    """What the model is called with."""

    src_tokens: Tensor  # (B, S) int64, padded on the right
    src_lengths: Tensor  # (B,) int64, tokens without padding
    prev_output_tokens: Tensor  # (B, T) int64
    patch_images: NotRequired[Tensor]  # (B, 3, R, R) float32
    image_rows: NotRequired[Tensor]  # (B,) int64: samples share images, and patch_images holds each once
    patch_masks: NotRequired[Tensor]  # (B,) bool
    code_masks: NotRequired[Tensor]  # (B,) bool, True: the target is image codes


class Batch(TypedDict, total=False):
    """Collated samples; {} for no samples, only `skipped` when every row of the batch is bad."""

    rows: np.ndarray  # (B,) int64, numbers of the rows in their file
    id: np.ndarray  # (B,) str
    nsentences: int  # B
    ntokens: int  # target tokens without padding
    net_input: NetInput
    target: Tensor  # (B, T) int64
    constraint_rows: Tensor  # (E,) int64, b * T + t of an allowed id: all pairs together replace a (B, T, V) mask
    constraint_ids: Tensor  # (E,) int64
    decoder_prompts: list[list[int]]  # B lists
    references: list[list[str]]  # B lists
    # and what the task's rows have as extras: conf (B,), ref_dict B dicts, region_coords (B, 4) ...
    image_notes: list[str]  # those of all samples; absent when there is none
    skipped: list[str]  # one message per bad row left out; absent when there is none
