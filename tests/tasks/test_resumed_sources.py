"""Stopped in the middle of an epoch: with everything made anew, each kind of source gives the rows that are left."""

import base64
import io
import json
from collections import Counter

import pytest
import torch
from fairseq import tasks
from PIL import Image

import train
from tests.programs import ROOT
from tests.sources import SOURCES, columns_of, write_source

ROWS = 13
NAMES = ("id", "image", "caption")
ARGS = [
    "--task=caption", "--arch=ofa_demo", "--criterion=adjust_label_smoothed_cross_entropy", "--optimizer=adam",
    "--lr-scheduler=fixed", "--selected-cols=0,1,2", "--patch-image-size=16", "--code-dict-size=0", "--num-bins=0",
    "--batch-size=4", f"--bpe-dir={ROOT}/digits/BPE",
]  # fmt: skip


def write_rows(kind, folder, first):
    """A source of rows with images of their own, numbered from `first` on."""
    rows = []
    for number in range(first, first + ROWS):
        file = io.BytesIO()
        Image.new("RGB", (9, 7), (number, 0, 255 - number)).save(file, "PNG")
        image = base64.b64encode(file.getvalue()).decode()
        rows.append(dict(zip(NAMES, (f"n{number}", image, f"a picture of {number}"), strict=True)))
    folder.mkdir()
    return str(write_source(kind, folder, rows))


@pytest.fixture(scope="module")
def options():
    return train.parse_args(["data.tsv", *ARGS]).task


@pytest.mark.parametrize("kind", SOURCES)
def test_the_rest_of_an_epoch_is_read_once(kind, options, tmp_path):
    paths = [write_rows(kind, tmp_path / f"part{first}", first) for first in (0, 100)]
    options.data, options.columns = ",".join([*paths, paths[0]]), columns_of(kind, NAMES)

    def begin(epoch=1, state=None, processes=1, **sizes):
        """Iterators of all processes, each of a task of its own."""
        found = []
        for rank in range(processes):
            task = tasks.setup_task(options)
            task.load_dataset("train", epoch=epoch)
            share = {"max_sentences": 4, "num_shards": processes, "shard_id": rank, **sizes}
            found.append(task.get_batch_iterator(task.dataset("train"), seed=5, epoch=epoch, **share))
            if state is not None:
                found[-1].load_state_dict(json.loads(state))
        return found

    def read(iterators, batches=ROWS):
        """What is left in an epoch, or so many batches of it."""
        epochs = [iterator.next_epoch_itr() for iterator in iterators]
        return [next(one) for _ in range(batches) for one in epochs if one.has_next()]

    def ids(batches):
        return [name for batch in batches if batch for name in batch["id"]]

    for epoch, first in ((1, 0), (2, 100)):  # each file has its turn
        whole = read(begin(epoch))
        assert sorted(ids(whole)) == sorted(f"n{number}" for number in range(first, first + ROWS))
        running = begin(epoch)
        before = read(running, 2)
        state = json.dumps(running[0].state_dict())
        after = read(begin(epoch, state))
        assert len(before + after) == len(whole) and ids(whole) != sorted(ids(whole))
        for one, other in zip(before + after, whole, strict=True):
            assert ids([one]) == ids([other])
            for part in ("patch_images", "src_tokens"):
                assert torch.equal(one["net_input"][part], other["net_input"][part])
        others = begin(epoch, state, processes=2, max_sentences=3)
        assert Counter(ids(before) + ids(read(others))) == Counter(ids(whole))
