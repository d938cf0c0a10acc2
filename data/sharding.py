"""Which rows a rank reads in an epoch, in which order and in which batches: pure functions of numbers."""

import math
from collections.abc import Sequence

import numpy as np

from utils.errors import UserError


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


def plan_batches(
    num_rows: int, batch_size: int, rank: int, world_size: int, seed: int, epoch: int, shuffle: bool
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
    Raises:
        UserError: more ranks than rows, or a batch size below 1.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; pass at least 1.")
    if num_rows < world_size:
        raise UserError(f"{world_size} ranks cannot share {num_rows} rows; start at most {num_rows} ranks.")
    start, stop = rank_slice(num_rows, rank, world_size)
    order = row_order(num_rows, seed, epoch, shuffle)[start:stop]
    if world_size > 1:
        order = order.copy()  # a view would keep the rows of all other ranks in memory
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    if len(batches) < math.ceil(math.ceil(num_rows / world_size) / batch_size):
        batches.append(order[:0])
    return batches
