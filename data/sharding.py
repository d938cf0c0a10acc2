"""Which rows a rank reads in an epoch, in which order and in which batches: pure functions of numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.errors import UserError


class Read(NamedTuple):
    """A stretch of an epoch that is done: each of `processes` ranks read `batches` batches of `batch_size` rows."""

    processes: int
    batch_size: int
    batches: int


def file_for_epoch(paths: Sequence[str], split: str, epoch: int) -> str:
    """Data file of a split: the last path evaluates, the others take turns in training.

    Args:
        paths: data files; a single one serves every split.
        split: "train", or any other name for evaluation.
        epoch: from 1; training epoch e reads file (e - 1) mod (n - 1) of n.
    Raises:
        UserError: no path.
    """
    if not paths:
        raise UserError("No data file is given; pass TSV files, separated by commas, as the first argument.")
    if split != "train" or len(paths) == 1:
        return paths[-1]
    return paths[(epoch - 1) % (len(paths) - 1)]


def rank_slice(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and stop of a rank's share; the first `num_rows % world_size` ranks get one row more."""
    base, longer = divmod(num_rows, world_size)
    start = rank * base + min(rank, longer)
    return start, start + base + (rank < longer)


def row_order(num_rows: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Order of all rows (N,), int64: a permutation that depends on seed and epoch only, or file order."""
    if not shuffle:
        return np.arange(num_rows, dtype=np.int64)
    return np.random.default_rng((seed, epoch)).permutation(num_rows)


def rows_left(order: np.ndarray, read: Sequence[Read]) -> np.ndarray:
    """What of an epoch's rows (N,) no rank has read yet (n,), each once; later stretches began with what was left."""
    for part in read:
        taken = part.batches * part.batch_size
        shares = (rank_slice(len(order), rank, part.processes) for rank in range(part.processes))
        order = np.concatenate([order[min(start + taken, stop) : stop] for start, stop in shares])
    return order


def num_left(num_rows: int, read: Sequence[Read]) -> int:
    """Number of rows that `rows_left` gives."""
    for part in read:
        taken = part.batches * part.batch_size
        shares = (rank_slice(num_rows, rank, part.processes) for rank in range(part.processes))
        num_rows = sum(max(stop - start - taken, 0) for start, stop in shares)
    return num_rows


def num_batches(num_rows: int, batch_size: int, world_size: int) -> int:
    """Batches of a rank with the longest share of the rows."""
    return math.ceil(math.ceil(num_rows / world_size) / batch_size)


def plan_batches(
    num_rows: int,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    read: Sequence[Read] = (),
) -> list[np.ndarray]:
    """Batches of row numbers (B,), int64, that a rank reads in an epoch; every rank gets as many.

    The last batch may be short; a rank with one batch less than the longest gets an empty one at the end.

    Args:
        num_rows: rows in the file, N.
        batch_size: rows per batch on one rank.
        rank: number of this rank, from 0.
        world_size: number of ranks.
        seed: with `epoch` fixes the permutation, the same on all ranks.
        epoch: from 1.
        shuffle: permute all rows before they are dealt to the ranks; else file order.
        read: what other numbers of ranks or batch sizes have read of the epoch: the rows left are dealt anew.
    Raises:
        UserError: more ranks than rows in the file, or a batch size below 1.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; pass at least 1.")
    if num_rows < world_size:
        raise UserError(f"{world_size} ranks cannot share {num_rows} rows; start at most {num_rows} ranks.")
    left = rows_left(row_order(num_rows, seed, epoch, shuffle), read)
    start, stop = rank_slice(len(left), rank, world_size)
    order = left[start:stop]
    if world_size > 1:
        order = order.copy()  # a view would keep the rows of all other ranks in memory
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    if len(batches) < num_batches(len(left), batch_size, world_size):
        batches.append(order[:0])
    return batches
