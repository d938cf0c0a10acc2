"""Where a run stands in an epoch, as rows: it continues with those left at any batch size and number of processes."""

import logging
import math
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from fairseq.data import iterators
from torch.utils.data import DataLoader

from data.base import OFADataset
from data.sharding import Read, num_left
from utils.errors import UserError

logger = logging.getLogger(__name__)
ADVICE = "pass --reset-dataloader to begin with epoch 1."


class Order(NamedTuple):
    """What besides the epoch fixes the order of its rows: the seed, and whether they are shuffled."""

    seed: int
    shuffle: bool


def _quiet(_: int) -> None:
    """In a worker: that nobody takes its batches any more is no news, and its threads would print it."""
    hook = sys.excepthook
    sys.excepthook = lambda kind, *rest: None if issubclass(kind, ConnectionError) else hook(kind, *rest)


class EpochBatches(iterators.EpochBatchIterator):
    """fairseq's iterator; its state also says which rows of the epoch were read, under `rows`.

    With the settings of the state it continues with the next batch of the same plan. With another batch size, number of
    processes or --update-freq the rows left are dealt anew, in the order in which the epoch began.

    Args:
        plan: batches of this process, given an order and what is done of the epoch with other settings.
        order: that of a new epoch. setting: processes and batch size (its number of batches is not used).
        options: as fairseq's.

    Attributes:
        update_freqs: batches per update in each epoch (the last one continues), which the trainer sets.
        changed: whether the state restored was written with other settings.
        more_updates: how many more the run makes than its present settings would from the first epoch on.
    """

    update_freqs: Sequence[int] = (1,)
    changed = False
    more_updates = 0

    def __init__(
        self,
        dataset: OFADataset,
        collate_fn: Callable[[Sequence[Any]], Any],
        plan: Callable[[Order, Sequence[Read]], list[np.ndarray]],
        order: Order,
        setting: Read,
        **options: Any,
    ) -> None:
        self._plan, self._order, self._setting = plan, order, setting
        self._read: list[Read] = []  # with other settings, in this epoch
        self._start = 0  # number of the first batch of the present setting
        # The plan holds the order; batches of file order must stay in it.
        super().__init__(dataset, collate_fn, plan(order, ()), disable_shuffling=True, **options)

    def _get_iterator_for_epoch(
        self, epoch: int, shuffle: bool, fix_batches_to_gpus: bool = False, offset: int = 0
    ) -> "Batches | None":
        """Batches from number `offset` on, the plan's order being the epoch's; None if none is left."""
        batches = self.frozen_batches
        if 0 < len(batches) <= offset:
            return None
        ahead = max(2, math.ceil(self.buffer_size / self.num_workers)) if self.num_workers else None
        loader = DataLoader(
            self.dataset, batch_sampler=batches[offset:], collate_fn=self.collate_fn, num_workers=self.num_workers,
            prefetch_factor=ahead, pin_memory=torch.cuda.is_available(), worker_init_fn=_quiet,
        )  # fmt: skip
        return Batches(loader, start=offset, total=len(batches))

    def arrange(self, done: Container[int], sizes: np.ndarray | None = None) -> None:
        """Batches anew, of the rows that are not done; not for training.

        Args:
            sizes: (N,) of all rows of the file: equally long ones come together, the longest first; None = as they are.
        """
        rows = np.concatenate(self.frozen_batches)
        rows = rows[[row not in done for row in rows.tolist()]]
        if sizes is not None:
            rows = rows[np.argsort(-sizes[rows], kind="stable")]
        size = self._setting.batch_size
        self._frozen_batches = tuple(rows[first : first + size] for first in range(0, len(rows), size))

    def close(self) -> None:
        """Ends the processes that read this epoch's data, wherever it stands."""
        if isinstance(self._cur_epoch_itr, Batches):
            self._cur_epoch_itr.close()

    @property
    def update_freq(self) -> int:
        """Batches per update in this epoch."""
        return self.update_freqs[min(self.epoch, len(self.update_freqs)) - 1]

    @property
    def batches_left(self) -> int:
        """Batches of this epoch that are not read yet."""
        return len(self.frozen_batches) - self.iterations_in_epoch

    def state_dict(self) -> dict[str, Any]:
        """As stock, and `rows`: how many there are, how many are read, in which order, and in which stretches."""
        state = super().state_dict()
        done = [*self._read, self._setting._replace(batches=self.iterations_in_epoch - self._start)]
        if state["iterations_in_epoch"] == 0:  # of the next epoch
            done = []
        total = len(self.dataset)
        order = {"seed": self._order.seed, "shuffle": self._order.shuffle}
        stretches = [list(part) for part in done]
        state["rows"] = {"total": total, "read": total - num_left(total, done), **order, "stretches": stretches}
        state |= {"setting": self._present(), "more_updates": self.more_updates}
        return state

    def _present(self) -> list[Any]:
        return [*self._setting[:2], list(self.update_freqs)]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As stock, for every setting; UserError if the state is not of this data file."""
        rows, position = state_dict.get("rows"), state_dict.get("iterations_in_epoch", 0)
        self.changed = state_dict.get("setting", self._present()) != self._present()
        self.more_updates = state_dict.get("more_updates", 0)
        if rows is None or position == 0:
            if position and position >= len(self.frozen_batches):
                reason = f"The checkpoint has read {position} batches of an epoch, and this data has fewer"
                raise UserError(f"{reason}: {ADVICE}")
            super().load_state_dict(dict(state_dict))
            return
        done, total = [Read(*part) for part in rows["stretches"]], len(self.dataset)
        if rows.get("total", total) != total or not num_left(total, done):
            there = f"of {rows['total']} rows" if "total" in rows else "after more rows than that"
            raise UserError(
                f"{self.dataset.rows.path} has {total} rows, and the checkpoint is in the middle of an epoch {there}: "
                f"name the file it was trained on, or {ADVICE}"
            )
        *earlier, last = done
        if last._replace(batches=0) == self._setting and last.batches % self.update_freq == 0:
            self._read, offset = earlier, last.batches
        else:
            self._read, offset = done, 0
            logger.info(
                "%d rows of epoch %d are left: %d processes read them in batches of %d.",
                num_left(total, done), state_dict["epoch"], self._setting.processes, self._setting.batch_size,
            )  # fmt: skip
        # fairseq counts updates in batches from the start of an epoch: the present ones begin at a whole update.
        before = sum(part.batches for part in self._read)
        self._start = math.ceil(before / self.update_freq) * self.update_freq
        self._order = Order(rows["seed"], rows["shuffle"])
        batches = self._plan(self._order, self._read)
        self._frozen_batches = (*[batches[0][:0]] * self._start, *batches)
        super().load_state_dict({**state_dict, "iterations_in_epoch": self._start + offset})


class Batches(iterators.CountingIterator):
    """Batches of a loader, whose processes end with the last one.

    Left to garbage collection they would live on into the next epoch, and then hold up the run for five seconds.
    """

    _itr: Any

    def __next__(self) -> Any:
        batch = super().__next__()
        if not self.has_next():
            self.close()
        return batch

    def close(self) -> None:
        """Ends the loader's processes."""
        if hasattr(self._itr, "_shutdown_workers"):
            self._itr._shutdown_workers()
        self._itr = iter(())


def rows_of_earlier_version(state: dict[str, Any]) -> None:
    """Adds `rows` to the train iterator of a checkpoint that lacks it, from the options it was trained with.

    The original reads in file order, as --no-shuffle-rows does.
    """
    iterator, cfg = (state.get("extra_state") or {}).get("train_iterator"), state.get("cfg")
    if not cfg or not iterator or "rows" in iterator or not iterator.get("iterations_in_epoch"):
        return
    try:
        seed, epoch, dataset = cfg["common"]["seed"], iterator["epoch"], cfg["dataset"]
        seed += epoch if dataset.get("update_ordered_indices_seed") else 0
        shuffle = not cfg["task"].get("no_shuffle_rows", True) and epoch > dataset["curriculum"]
        processes = cfg["distributed_training"]["distributed_world_size"]
        stretch = [processes, dataset["batch_size"], iterator["iterations_in_epoch"]]
        iterator["setting"] = [*stretch[:2], list(cfg["optimization"]["update_freq"])]
    except (KeyError, TypeError):  # no training of ours or of the original
        return
    iterator["rows"] = {"seed": seed, "shuffle": shuffle, "stretches": [stretch]}
