"""The pretraining mixture: which rows of its files a batch holds, in which order, and how it is collated.

A row is named by one number: rows of the main file first, then those of the further files in order.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np

from data.base import OFADataset
from data.collate import collate
from data.image_text import ImageTextDataset
from data.pretrain_rows import (
    DetectionDataset,
    ImageInfillingDataset,
    PretrainData,
    PretrainSample,
    TextInfillingDataset,
    TextToImageDataset,
)
from data.row_index import Rows
from data.sample import Batch, Sample, SkippedRow
from data.sharding import Read, num_batches, plan_batches, row_order
from data.text import Vocabulary
from data.tsv import TsvFile
from utils.errors import UserError

EXTRA_SOURCES: dict[str, Callable[..., OFADataset]] = {
    "text": TextInfillingDataset,
    "image": ImageInfillingDataset,
    "detection": DetectionDataset,
    "image_gen": TextToImageDataset,
}
LARGEST_DENOMINATOR = 10**6  # a ratio is taken as the fraction that it is meant to be


class Extra(NamedTuple):
    """A further file of the mixture: its number of rows, and how many are read per row of the main file."""

    num_rows: int
    ratio: float

    def rows_of(self, steps: "int | np.ndarray", batch_size: int) -> Any:
        """Rows that a rank reads of this file in the first steps."""
        per_step = batch_size * Fraction(self.ratio).limit_denominator(LARGEST_DENOMINATOR)
        return steps * per_step.numerator // per_step.denominator


class PretrainDataset(ImageTextDataset):
    """The main file and, in training, the further ones that are configured; `len` counts rows of the main file.

    Raises:
        UserError: a file cannot be opened or has other columns, no negatives in training, an option out of bounds.
    """

    def __init__(
        self, rows: Rows, vocab: Vocabulary, config: PretrainData, split: str, seed: int = 1, epoch: int = 1
    ) -> None:
        for flag, value in (("--columns", config.columns), ("--image-root", config.image_root)):
            if value is not None:
                raise UserError(f"{flag}: pretraining reads TSV files with the images in them; leave it out.")
        super().__init__(rows, vocab, config, split, seed, epoch)
        self.sources: list[OFADataset] = []
        self.ratios: list[float] = []
        for name, kind in EXTRA_SOURCES.items() if split == "train" else ():
            path, ratio = getattr(config, f"{name}_data"), getattr(config, f"{name}_ratio")
            if not 0 <= ratio < float("inf"):
                raise UserError(f"--{name}-ratio is {ratio}; pass 0 or more rows per row of the main file.")
            if path:
                extra_rows = TsvFile(path, getattr(config, f"{name}_selected_cols"))
                self.sources.append(kind(extra_rows, vocab, config, split))
                self.ratios.append(ratio)

    def __getitem__(self, index: int) -> PretrainSample | SkippedRow:
        """Sample of a row of any file; see the module for numbers, and `OFADataset`."""
        number = index - len(self)
        if number < 0:
            return cast(PretrainSample | SkippedRow, super().__getitem__(index))
        for source in self.sources:
            if number < len(source):
                source.seed, source.epoch = self.seed, self.epoch
                return cast(PretrainSample | SkippedRow, source[number])
            number -= len(source)
        raise IndexError(f"row {index} of {len(self) + sum(map(len, self.sources))}")

    def plan(
        self,
        batch_size: int,
        rank: int,
        world_size: int,
        epoch: int,
        shuffle: bool,
        seed: int | None = None,
        read: Sequence[Read] = (),
    ) -> list[np.ndarray]:
        """Numbers of the rows of each step of an epoch, by the dataset's seed or another; see `plan_mixture`."""
        extras = [Extra(len(source), ratio) for source, ratio in zip(self.sources, self.ratios, strict=True)]
        seed = self.seed if seed is None else seed
        return plan_mixture(len(self), extras, batch_size, rank, world_size, seed, epoch, shuffle, read)

    def collater(self, samples: Sequence[Sample | SkippedRow]) -> Batch:
        """One batch of all examples of rows of the main file: for evaluation."""
        return super().collater(with_seconds(samples))

    def collate_parts(self, samples: Sequence[Sample | SkippedRow]) -> list[Batch]:
        """The two parts of a training batch; see `collate_parts`."""
        return collate_parts(samples, self.vocab.pad)


def plan_mixture(
    num_rows: int,
    extras: Sequence[Extra],
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    read: Sequence[Read] = (),
) -> list[np.ndarray]:
    """Batches of row numbers that a rank reads in an epoch: those of `plan_batches`, each with further files' rows.

    Of a further file, the first s steps read floor(s * batch_size * ratio) rows: all ranks as many in each step, and
    the ratio holds for every batch size. Its rows come in passes, each in an order of its own, that go on where the
    epoch before stopped (exactly so if the main files of all epochs are of the same length).

    Args:
        num_rows: rows of the main file.
        extras: the further files; their rows are numbered from `num_rows` on, one file after the other.
        batch_size, rank, world_size, seed, epoch, shuffle, read: as in `plan_batches`.
    Raises:
        UserError: as `plan_batches`.
    """
    batches = plan_batches(num_rows, batch_size, rank, world_size, seed, epoch, shuffle, read)
    first_ranks, first_size, _ = read[0] if read else Read(world_size, batch_size, 0)  # with which the epoch began
    steps = num_batches(num_rows, first_size, first_ranks)
    start, streams = num_rows, []
    for extra in extras:
        ends = extra.rows_of(np.arange(len(batches) + 1, dtype=np.int64), batch_size)
        begin = (epoch - 1) * first_ranks * extra.rows_of(steps, first_size)
        begin += sum(part.processes * extra.rows_of(part.batches, part.batch_size) for part in read)
        # In every step the ranks take consecutive pieces of the stream.
        counts = np.diff(ends)
        first = begin + world_size * ends[:-1] + rank * counts
        positions = np.repeat(first - ends[:-1], counts) + np.arange(ends[-1])
        rows = start + _rows_of_passes(positions, extra.num_rows, seed, shuffle)
        streams.append((rows, ends.tolist()))
        start += extra.num_rows
    return [
        np.concatenate([batch, *(rows[ends[step] : ends[step + 1]] for rows, ends in streams)]) if len(batch) else batch
        for step, batch in enumerate(batches)
    ]


def _rows_of_passes(positions: np.ndarray, num_rows: int, seed: int, shuffle: bool) -> np.ndarray:
    """Rows (n,) at ascending positions (n,) of an endless sequence of passes over a file."""
    passes, places = np.divmod(positions, num_rows)
    rows = np.empty_like(places)
    _, begins = np.unique(passes, return_index=True)
    for begin, end in pairwise([*begins.tolist(), len(rows)]):
        rows[begin:end] = row_order(num_rows, seed, int(passes[begin]) + 1, shuffle)[places[begin:end]]
    return rows


def with_seconds(samples: Sequence[Sample | SkippedRow]) -> list[Sample | SkippedRow]:
    """Samples, each followed by the second one of its row."""
    found: list[Sample | SkippedRow] = []
    for sample in samples:
        found.append(sample)
        if not isinstance(sample, SkippedRow) and "second" in sample:
            found.append(cast(PretrainSample, sample)["second"])
    return found


def collate_parts(samples: Sequence[Sample | SkippedRow], pad: int) -> list[Batch]:
    """Part 1, the image-text examples, and part 2, the further files, whose `net_input` has `code_masks` (B,).

    A part without samples is {}; without any samples the result is []. Messages of skipped rows are in part 1.

    Args:
        samples: items of a `PretrainDataset`.
        pad: id that fills up.
    """
    if not samples:
        return []
    first: list[Sample | SkippedRow] = []
    second: list[Sample | SkippedRow] = []
    for sample in with_seconds(samples):
        is_extra = not isinstance(sample, SkippedRow) and "code_masks" in sample["extras"]
        (second if is_extra else first).append(sample)
    parts = [collate(first, pad), collate(second, pad)]
    if second:
        parts[1]["net_input"]["code_masks"] = parts[1].pop("code_masks")  # type: ignore[typeddict-item]
    return parts
