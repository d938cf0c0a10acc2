"""The dataset of every task: row -> Example (the task's part) -> Sample."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Optional

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.collate import collate
from data.images import MAX_PIXELS, Decoded, ImageTransform, decode, decode_image, image_file, standard_transform
from data.row_index import Row, Rows
from data.sample import DAMAGED, LYING, Batch, Example, Sample, SkippedRow
from data.text import Vocabulary, require_words
from data.tsv import check_format
from utils.errors import BadRowError, UserError

MAX_POSITIONS = 1024  # of texts; the tables of relative positions end here
STRICT_SPLITS = ("train", "check")  # rows to learn from, and those that `data.validate` reads as if they were


@dataclass
class DataConfig:
    """Options that every task has; each field is a flag of the same name."""

    data: Optional[str] = field(
        default=None,
        metadata={"help": "data files, comma-separated; the last is for validation or evaluation"},
    )
    selected_cols: Optional[str] = field(
        default=None,
        metadata={"help": "columns in the order the task reads them, e.g. 0,4,2; all if not given"},
    )
    columns: Optional[str] = field(
        default=None,
        metadata={
            "help": "columns of a table (not TSV) where the task has other names: image=file_name,text=title, or JSON"
        },
    )
    image_root: Optional[str] = field(
        default=None,
        metadata={"help": "folder that paths of images start from (default: a table's own; none in TSV files)"},
    )
    bpe: Optional[str] = field(
        default="gpt2", metadata={"help": "byte pair encoding: gpt2 (English) or bert (Chinese)"}
    )
    bpe_dir: Optional[str] = field(
        default=None,
        metadata={"help": "folder with dict.txt and encoder.json + vocab.bpe (gpt2) or vocab.txt (bert)"},
    )
    max_source_positions: int = field(default=1024, metadata={"help": "longest source to report, in tokens"})
    max_target_positions: int = field(default=1024, metadata={"help": "longest target to report, in tokens"})
    max_src_length: int = field(default=128, metadata={"help": "longest source, in words for most tasks"})
    max_tgt_length: int = field(default=30, metadata={"help": "longest target, in words for most tasks"})
    code_dict_size: int = field(default=8192, metadata={"help": "number of image code tokens"})
    patch_image_size: int = field(default=480, metadata={"help": "side of the image in pixels"})
    orig_patch_image_size: int = field(
        default=256, metadata={"help": "image side in pixels that the position embeddings refer to"}
    )
    num_bins: int = field(default=1000, metadata={"help": "number of location tokens"})
    imagenet_default_mean_and_std: bool = field(
        default=False, metadata={"help": "normalize with ImageNet's mean and deviation, not 0.5 and 0.5"}
    )
    constraint_range: Optional[str] = field(
        default=None, metadata={"help": '"start,end": generate only ids start to end - 1 and the special ids'}
    )
    no_shuffle_rows: bool = field(
        default=False, metadata={"help": "read training rows in file order, not in a new order each epoch"}
    )
    exif_orientation: bool = field(
        default=False,
        metadata={"help": "turn images upright by their EXIF orientation instead of reading them as stored"},
    )
    max_image_pixels: int = field(
        default=MAX_PIXELS, metadata={"help": "larger images are bad rows; checked in the header, before decoding"}
    )
    fast_decode: bool = field(
        default=False,
        metadata={"help": "decode large JPEG files at a smaller size and resize faster: colors differ slightly"},
    )
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "leave out and count rows that cannot be read instead of stopping"}
    )


class OFADataset(Dataset[Sample | SkippedRow], ABC):
    """Rows of one file as samples; a task says what its columns are and what a row means.

    Rows to learn from (`strict`) are bad without words or id; evaluation reads them.

    Args:
        rows: the file.
        vocab: text <-> ids.
        config: options of the task.
        split: "train" switches training-time processing on; every other name is evaluation.
        seed: seed of the run.
        epoch: 1 for the first; together with seed and row number it fixes all random choices.

    Raises:
        UserError: `--selected-cols` names a different number of columns than the task reads.
    """

    columns: tuple[str, ...]  # what the task reads, in the order of --selected-cols
    unused_columns = 0  # how many more the released scripts may select
    left_out = 0  # how many at the end, the reference first, the rows of a test set may leave out
    needs_references = True  # False: rows without a reference are answered, and their loss is nothing
    on_image: Callable[[bytes, Decoded], None] | None = None  # told of each image that is decoded, with its file
    # answer tokens so far -> ids that may follow; None = all
    allowed_after: Callable[[Sequence[int]], Sequence[int]] | None = None

    def __init__(
        self, rows: Rows, vocab: Vocabulary, config: DataConfig, split: str, seed: int = 1, epoch: int = 1
    ) -> None:
        for name in ("max_image_pixels", "max_src_length", "max_tgt_length"):  # negative ones would cut texts' ends
            if (value := getattr(config, name)) < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: choose at least 1.")
        check_format(rows, len(self.columns))
        selected = len(rows.columns or rows[0])
        count = len(self.columns)
        allowed = {
            *range(count, count + self.unused_columns + 1),
            count - (0 if split in STRICT_SPLITS else self.left_out),
        }
        if selected not in allowed:
            raise self._wrong_columns(rows, selected)
        self.rows, self.vocab, self.config, self.split = rows, vocab, config, split
        self.seed, self.epoch = seed, epoch
        self.strict = split in STRICT_SPLITS
        self.transform = standard_transform(
            config.patch_image_size, config.imagenet_default_mean_and_std, config.fast_decode
        )
        self._image_notes: set[str] = set()  # of the row that is being read
        self._last_image: tuple[bytes, Tensor, set[str]] | None = None  # file, pixels, notes

    @abstractmethod
    def example(self, row: Row, rng: random.Random) -> Example:
        """What a row means; ValueError with a reason if the row is bad."""

    def _wrong_columns(self, rows: Rows, selected: int) -> UserError:
        wanted = ", ".join(self.columns)
        if rows.columns is None:
            return UserError(f"{rows.path} has {selected} columns: choose those of {wanted} with --selected-cols.")
        return UserError(f"{rows.path}: --selected-cols gives {selected} columns; choose those of {wanted}.")

    def lacks_reference(self, text: str) -> bool:
        """Whether a row is answered without the reference that this column should hold."""
        return not self.needs_references and not text.strip()

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Called by fairseq before each epoch: random choices of a row are new every epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample | SkippedRow:
        """Sample of a row.

        Raises:
            BadRowError: the row cannot become a sample; with `skip_bad_rows` its message is returned instead.
        """
        try:
            return self._sample(index)
        except BadRowError as error:
            if self.config.skip_bad_rows:
                return SkippedRow(error.fault)
            raise

    def image(self, column: str | bytes) -> Image.Image:
        """RGB image of an image column; ValueError as of `data.images.decode`."""
        return self._decode(image_file(column))

    def _decode(self, data: bytes, side: int | None = None) -> Image.Image:
        upright = self.config.exif_orientation
        image = decode(data, self.config.max_image_pixels, upright, side=side)
        if self.on_image is not None:
            self.on_image(data, image)
        notes = (DAMAGED, image.damaged), (LYING, image.lying and not upright)
        self._image_notes |= {note for note, holds in notes if holds}
        return image.image

    def collater(self, samples: Sequence[Sample | SkippedRow]) -> Batch:
        """Batch of samples; the name is the one fairseq calls."""
        return collate(samples, self.vocab.pad, share_images=not self.strict)

    def example_of(self, index: int) -> Example:
        """What a row means, before its text and image become tensors; BadRowError if it is bad."""
        row = self.rows[index]
        if len(row) < len(self.columns):
            if self.needs_references:
                raise self._wrong_columns(self.rows, len(row))
            row += ("",) * (len(self.columns) - len(row))
        rng = random.Random(f"{self.seed} {self.epoch} {index}")  # independent of workers and of order
        with self._naming(index):
            example = self.example(row, rng)
            if self.strict and example.id is not None and not example.id.strip():
                raise ValueError("the id is empty")
            return example

    def _sample(self, index: int) -> Sample:
        self._image_notes = set()
        example = self.example_of(index)
        with self._naming(index):
            sample = self._encode(index, example)
            self._check_length(sample)
        if self._image_notes:
            row = f"{self.rows.path}, {self.rows.place(index)}"
            sample["image_notes"] = [f"{row}: {note}" for note in sorted(self._image_notes)]
        return sample

    def _check_length(self, sample: Sample) -> None:
        """ValueError for more text tokens than the model has positions; image codes have positions of their own."""
        lengths = {"source": (len(sample["source"]), self.config.max_source_positions)}
        if not sample["extras"].get("code_masks"):
            lengths["target"] = len(sample["prev_output_tokens"]), self.config.max_target_positions
        for side, (length, positions) in lengths.items():
            if length > min(positions, MAX_POSITIONS):
                raise ValueError(
                    f"the {side} has {length} tokens and the model positions for {min(positions, MAX_POSITIONS)}"
                )

    def check_words(self, text: str, what: str) -> str:
        """The text; ValueError if it has no words and the model learns from it: evaluation reads such rows."""
        return require_words(text, what) if self.strict else text

    @contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        """Errors inside name the row."""
        try:
            yield
        except UserError:
            raise
        except ValueError as error:
            raise BadRowError(self.rows.path, self.rows.place(index), str(error)) from error

    def _encode(self, index: int, example: Example) -> Sample:
        if isinstance(example.image, bytes):
            example.image = self._whole(example.image) if self.strict else self._shared_pixels(example.image)
        return encode_example(index, example, self.vocab, self.transform, self.allowed_after)

    def _whole(self, data: bytes) -> Image.Image:
        """Image of a file that becomes a square as a whole, of which no place is known in pixels."""
        return self._decode(data, self.config.patch_image_size if self.config.fast_decode else None)

    def _shared_pixels(self, data: bytes) -> Tensor:
        """Pixels of an image file: one tensor for consecutive rows with the same image, as of questions about it."""
        if self._last_image is None or self._last_image[0] != data:
            pixels = self.transform(self._whole(data))
            self._last_image = data, pixels, self._image_notes.copy()
        self._image_notes |= self._last_image[2]
        return self._last_image[1]


def encode_example(
    index: int,
    example: Example,
    vocab: Vocabulary,
    transform: ImageTransform,
    allowed_after: Callable[[Sequence[int]], Sequence[int]] | None = None,
) -> Sample:
    """The sample of an example: for training, for evaluation and for `models.predictor` alike.

    Args:
        index: number of the row. transform: what makes a tensor of a decoded image.
        allowed_after: as in `OFADataset`.

    Raises:
        ValueError: an image that cannot be decoded.
    """
    bos, eos, pad = int(vocab.bos), int(vocab.eos), int(vocab.pad)
    source_ids = vocab.encode(example.source) if isinstance(example.source, str) else example.source
    source = [bos, *source_ids[: example.max_source_tokens], eos]
    text = example.target
    answer = (vocab.encode(text) if isinstance(text, str) else text)[: example.max_target_tokens]
    answer = [*answer, eos] if example.ends else answer
    read = answer[:-1] if example.decoder_input is None else example.decoder_input
    prompts: dict[str | None, list[int]] = {"src": source, "prev_output": source[:-1]}
    prompt = prompts.get(example.prompt_type, [bos])
    target = [pad] * (len(prompt) - 1) + (answer if example.learn else [pad] * len(answer))
    sample = Sample(
        row=index,
        id=str(index) if example.id is None else example.id,
        source=torch.tensor(source),
        target=torch.tensor(target),
        prev_output_tokens=torch.tensor([*prompt, *read]),
        extras=example.extras,
    )
    if example.image is not None:
        sample["patch_image"] = _pixels(example.image, transform)
        sample["patch_mask"] = torch.tensor([True])
    if allowed_after is not None:
        allowed = [allowed_after(answer[:t]) if example.learn else [] for t in range(len(answer))]
        rows = torch.arange(len(prompt) - 1, len(target))
        sample["constraint_rows"] = rows.repeat_interleave(torch.tensor([len(ids) for ids in allowed]))
        sample["constraint_ids"] = torch.tensor([token for ids in allowed for token in ids], dtype=torch.long)
    if example.prompt_type is not None:
        sample["decoder_prompt"] = prompt
    if example.references is not None:
        sample["references"] = example.references
    return sample


def _pixels(image: bytes | Image.Image | Tensor, transform: ImageTransform) -> Tensor:
    if isinstance(image, Tensor):
        return image
    return transform(decode_image(image) if isinstance(image, bytes) else image)
