"""Files, slices, orders and batches: golden figures and properties over many sizes."""

import json
import math
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data.sharding import file_for_epoch, plan_batches, rank_slice, row_order
from utils.errors import UserError

FIGURES = Path(__file__).parents[1] / "golden/samples_tokenization.json"
GOLDEN = json.loads(FIGURES.read_text(encoding="utf-8"))["sharding"]


def test_training_files_take_turns():
    paths = ["a", "b", "c", "val"]
    assert [file_for_epoch(paths, "train", epoch) for epoch in range(1, 8)] == list("abcabca")
    assert {file_for_epoch(paths, split, epoch) for split in ("valid", "test") for epoch in (1, 2, 9)} == {"val"}
    assert [file_for_epoch(["a", "val"], "train", epoch) for epoch in (1, 2)] == ["a", "a"]


def test_single_file_serves_every_split():
    assert file_for_epoch(["only"], "train", 3) == file_for_epoch(["only"], "valid", 1) == "only"
    with pytest.raises(UserError, match="No data file"):
        file_for_epoch([], "train", 1)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['rows']}-{case['rank']}of{case['processes']}")
def test_golden_slices(case):
    start, stop = rank_slice(case["rows"], case["rank"], case["processes"])
    if "raises" in case:  # the original fails on a rank without rows
        assert start == stop
        with pytest.raises(UserError, match=f"{case['processes']} ranks cannot share {case['rows']} rows"):
            plan_batches(case["rows"], 2, case["rank"], case["processes"], 1, 1, False)
        return
    assert (start, stop - start) == (case["start"], case["row_count"])
    rows = [int(row) for row in case["read_row_count_plus_2"]][: case["row_count"]]
    assert list(range(start, stop)) == rows


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_slices_are_contiguous_and_complete(num_rows, world_size):
    slices = [rank_slice(num_rows, rank, world_size) for rank in range(world_size)]
    assert slices[0][0] == 0 and slices[-1][1] == num_rows
    assert all(left[1] == right[0] for left, right in zip(slices, slices[1:], strict=False))
    lengths = [stop - start for start, stop in slices]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


def test_row_order():
    assert row_order(5, seed=1, epoch=1, shuffle=False).tolist() == [0, 1, 2, 3, 4]
    order = row_order(1000, seed=1, epoch=1, shuffle=True)
    assert order.dtype == np.int64 and sorted(order) == list(range(1000))
    assert np.array_equal(order, row_order(1000, 1, 1, True))
    others = [row_order(1000, 1, 2, True), row_order(1000, 2, 1, True), row_order(1000, 0, 1, False)]
    assert not any(np.array_equal(order, other) for other in others)


def test_order_is_the_same_everywhere():
    """A resumed run relies on it: a numpy that shuffles in another way must be noticed."""
    assert row_order(10, seed=7, epoch=3, shuffle=True).tolist() == [3, 5, 4, 7, 8, 0, 9, 2, 1, 6]


@pytest.mark.parametrize("seed", range(30))
def test_batches_of_all_ranks(seed):
    rng = random.Random(seed)
    world_size, batch_size = rng.randint(1, 9), rng.randint(1, 12)
    num_rows, shuffle = rng.randint(world_size, 200), rng.random() < 0.5
    plans = [plan_batches(num_rows, batch_size, rank, world_size, seed, 2, shuffle) for rank in range(world_size)]
    assert {len(plan) for plan in plans} == {math.ceil(math.ceil(num_rows / world_size) / batch_size)}
    order = row_order(num_rows, seed, 2, shuffle)
    for rank, plan in enumerate(plans):
        start, stop = rank_slice(num_rows, rank, world_size)
        assert np.array_equal(np.concatenate(plan), order[start:stop])
        full, last = plan[:-1], plan[-1]
        if len(last) == 0:
            full, last = full[:-1], full[-1]
        assert all(len(batch) == batch_size for batch in full) and 0 < len(last) <= batch_size
        assert all(batch.dtype == np.int64 for batch in plan)


def test_rank_with_a_batch_less_gets_an_empty_one():
    plan = plan_batches(5, 3, 0, 1, 0, 1, False)
    assert [batch.tolist() for batch in plan] == [[0, 1, 2], [3, 4]]
    first, second = (plan_batches(5, 2, rank, 2, 0, 1, False) for rank in range(2))
    assert [batch.tolist() for batch in first] == [[0, 1], [2]]
    assert [batch.tolist() for batch in second] == [[3, 4], []]


def test_impossible_plans():
    for rank in range(8):
        with pytest.raises(UserError, match="8 ranks cannot share 7 rows"):
            plan_batches(7, 1, rank, 8, 1, 1, True)
    with pytest.raises(UserError, match="--batch-size is 0"):
        plan_batches(7, 0, 0, 1, 1, 1, True)


def test_memory_is_a_few_bytes_per_row():
    num_rows = 2_000_000
    tracemalloc.start()
    plan = plan_batches(num_rows, 500, 3, 4, 1, 1, shuffle=True)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, plan)) == num_rows // 4
    assert kept < 8 * num_rows / 4 * 1.3  # this rank's share, not the order of all rows
    assert peak < 8 * num_rows * 1.4
