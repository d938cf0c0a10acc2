"""A restart in the middle of an epoch: the rows left, each once, at any batch size, --update-freq and process count."""

import random
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
from fairseq.data import iterators
from torch.utils.data import Dataset

from data.sharding import Read, num_left, plan_batches, row_order, rows_left
from tasks.epochs import EpochBatches, Order, rows_of_earlier_version
from utils.errors import UserError


class Numbers(Dataset):
    """Rows that are their own numbers."""

    def __init__(self, size):
        self.size, self.rows = size, SimpleNamespace(path="numbers.tsv")

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return int(index)


class Setting(SimpleNamespace):
    """Processes, batch size, update-freq, and what a run of them would shuffle by."""

    def __init__(self, processes, batch_size, update_freq=1, seed=3, shuffle=True):
        super().__init__(
            processes=processes, batch_size=batch_size, update_freq=update_freq, order=Order(seed, shuffle)
        )

    def start(self, size, state=None, epoch=1):
        """An iterator for each process."""
        epoch, found = epoch if state is None else state["epoch"], []
        for rank in range(self.processes):

            def plan(order, read, rank=rank):
                of_all = partial(plan_batches, size, self.batch_size, rank, self.processes)
                return of_all(order.seed, epoch, order.shuffle, read)

            setting = Read(self.processes, self.batch_size, 0)
            iterator = EpochBatches(Numbers(size), list, plan, self.order, setting, epoch=epoch)
            iterator.update_freqs = [self.update_freq]
            if state is not None:
                iterator.load_state_dict(state)
            found.append(iterator)
        return found


def train(running, updates=None):
    """Rows of each update, process by process, until so many are done or the epoch is."""
    frequency = running[0].update_freq
    groups = [iterators.GroupedIterator(one.next_epoch_itr(), frequency) for one in running]
    done = []
    while groups[0].has_next() and (updates is None or len(done) < updates):
        done.append([next(group) for group in groups])
    assert len({group.has_next() for group in groups}) == 1
    return done


def rows(updates):
    return [row for update in updates for process in update for batch in process for row in batch]


@pytest.mark.parametrize("seed", range(60))
def test_every_row_once_over_any_restarts(seed):
    rng = random.Random(seed)
    size = rng.randint(9, 200)
    state, read = None, []
    for _ in range(rng.randint(1, 5)):
        numbers = [rng.randint(1, most) for most in (4, 9, 4, 9)]
        setting = Setting(*numbers, rng.random() < 0.5)
        running = setting.start(size, state)
        read += rows(train(running, rng.randint(1, 4)))
        states = [one.state_dict() for one in running]
        assert all(other == states[0] for other in states)
        state = states[0]
        if state["epoch"] == 2:
            break
        assert state["rows"]["read"] == len(read) and state["rows"]["total"] == size
    if state["epoch"] == 1:
        running = Setting(rng.randint(1, 4), rng.randint(1, 9), rng.randint(1, 4)).start(size, state)
        read += rows(train(running))
    assert Counter(read) == Counter(range(size))
    assert running[0].state_dict()["epoch"] == 2 and running[0].next_epoch_idx == 2


@pytest.mark.parametrize("seed", range(20))
def test_the_same_settings_go_on_with_the_batches_that_would_have_come(seed):
    rng = random.Random(seed)
    size, first = rng.randint(120, 200), Setting(1, 4)
    setting = Setting(rng.randint(1, 4), rng.randint(1, 4), rng.randint(1, 3))
    begun = None
    if seed % 2:  # also after a restart with other settings
        running = first.start(size)
        train(running, 2)
        begun = running[0].state_dict()
    whole = train(setting.start(size, begun))
    running = setting.start(size, begun)
    before = train(running, 2)
    state = running[0].state_dict()
    assert before + train(setting.start(size, state)) == whole
    if not seed % 2:
        assert state["iterations_in_epoch"] == 2 * setting.update_freq and state["version"] == 2
        older = {key: value for key, value in state.items() if key != "rows"}
        assert before + train(setting.start(size, older)) == whole


def test_the_order_stays_that_of_the_state_until_the_epoch_ends():
    running = Setting(1, 5, seed=1).start(40)
    before = train(running, 3)
    after = train(Setting(1, 5, seed=2, shuffle=False).start(40, running[0].state_dict()))
    assert rows(before + after) == row_order(40, 1, 1, True).tolist()


def test_fewer_rows_are_left_than_processes():
    running = Setting(1, 4).start(10)
    before = rows(train(running, 2))
    after = train(Setting(4, 4).start(10, running[0].state_dict()))
    assert [len(batch) for (update,) in [after] for process in update for batch in process] == [1, 1, 0, 0]
    assert sorted(before + rows(after)) == list(range(10))


def test_files_of_earlier_versions_go_on_with_other_settings():
    running = Setting(2, 4, seed=7).start(45)
    before = rows(train(running, 3))
    iterator = {key: value for key, value in running[0].state_dict().items() if key != "rows"}
    options = {
        "common": {"seed": 7},
        "dataset": {"batch_size": 4, "curriculum": 0},
        "task": {"no_shuffle_rows": False},
        "distributed_training": {"distributed_world_size": 2},
        "optimization": {"update_freq": [1]},
    }
    state = {"cfg": options, "extra_state": {"train_iterator": iterator}}
    rows_of_earlier_version(state)
    after = rows(train(Setting(1, 6).start(45, iterator)))
    assert Counter(before + after) == Counter(range(45))
    options["task"] = {}  # the original, which reads in file order
    del iterator["rows"]
    rows_of_earlier_version(state)
    assert iterator["rows"]["shuffle"] is False
    for other in ({}, {"cfg": None, "extra_state": {"train_iterator": dict(iterator)}}, {"cfg": {}, "extra_state": {}}):
        rows_of_earlier_version(other)


def test_another_file_is_one_sentence():
    running = Setting(1, 4).start(40)
    train(running, 3)
    state = running[0].state_dict()
    with pytest.raises(UserError, match=r"numbers.tsv has 44 rows, .* of 40 rows: .* --reset-dataloader"):
        Setting(1, 4).start(44, state)
    older = {key: value for key, value in state.items() if key != "rows"}
    with pytest.raises(
        UserError, match="has read 3 batches of an epoch, and this data has fewer: .*--reset-dataloader"
    ):
        Setting(1, 20).start(40, older)
    older["rows"] = {**state["rows"], "stretches": [[1, 40, 3]]}
    del older["rows"]["total"]
    with pytest.raises(UserError, match="after more rows than that"):
        Setting(1, 20).start(40, older)


def test_rows_left_agree_with_their_number():
    done = [Read(2, 4, 2), Read(3, 1, 1), Read(1, 6, 1)]
    for size in range(20, 50):
        left = rows_left(row_order(size, 1, 1, True), done)
        assert len(left) == len(set(left.tolist())) == num_left(size, done)
