"""What a person reads of a run, and what the files and boards hold beyond it."""

import json
import logging
import re

import pytest

import train
from digits.__main__ import main as build_demo
from tests.programs import ROOT, SMALL

ARGS = [
    *SMALL, "--task=caption", f"--bpe-dir={ROOT}/digits/BPE",
    "--criterion=adjust_label_smoothed_cross_entropy", "--selected-cols=0,4,2", "--patch-image-size=48",
    "--code-dict-size=0", "--num-bins=0", "--image-bucket-size=8", "--optimizer=adam", "--lr=1e-3", "--batch-size=2",
    "--max-epoch=2", "--no-epoch-checkpoints", "--log-interval=2", "--num-workers=0", "--store-ema", "--clip-norm=1",
    "--freeze-encoder-embedding",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 rows to train on and 4 to validate with."""
    folder = tmp_path_factory.mktemp("demo")
    assert build_demo([str(folder), "--train=12", "--val=4", "--test=2", "--size=48"]) == 0
    return folder / "caption_data"


@pytest.fixture
def log(data, tmp_path, capsys):
    """Trains with further flags; gives the messages of the lines that were printed."""

    def log(*flags):
        train.main([f"{data}/caption_stage1_train.tsv,{data}/caption_val.tsv", *ARGS, f"--save-dir={tmp_path}", *flags])
        lines = capsys.readouterr().out.splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in lines) or "--verbose" in flags
        return [line.split(": ", 1)[1] if re.match(r"\d{4}-", line) else line for line in lines]

    return log


def test_a_run_is_read_at_a_glance(log, tmp_path):
    lines = log("--log-format=simple")
    assert len(lines) < 40
    text = "\n".join(lines)
    for word in (
        "model      ofa_demo, ",
        " frozen",
        "12 rows",
        "batch      2 rows",
        "0 done, 12 at the end",
        "1 x CPU",
    ):
        assert word in text, word
    frozen = re.search(r"([\d,]+) parameters trained, ([\d,]+) frozen", text)
    assert frozen and all(int(number.replace(",", "")) > 1000 for number in frozen.groups())
    shown = [line for line in lines if "epoch 001:" in line]
    assert len(shown) == 3
    for name in ("loss=", "rows_s=", "data_wait=", "lr=", "gnorm=", "gb_peak=", "left=0:00:"):
        assert name in shown[0], name
    assert "ntokens" not in text and "sample_size" not in text and "train_wall" not in text
    assert re.search(r"best loss: [\d.]+ after update (6|12)\n", text)
    assert "evaluate it: python evaluate.py " in text and f"--path={tmp_path}/checkpoint_best.pt" in lines[-1]
    assert logging.getLogger("fairseq.data.iterators").level == logging.NOTSET


def test_verbose_shows_the_rest(log):
    text = "\n".join(log("--log-format=simple", "--verbose", "--max-update=2"))
    for word in ("Linear(", "image_bucket_size: 8", "sample_size=", "ema_decay="):
        assert word in text, word


def test_json_lines_hold_every_figure(log):
    found = [json.loads(line) for line in log("--log-format=json") if line.startswith("{")]
    inner = [entry for entry in found if "loss" in entry]
    assert len(inner) == 6
    for name in ("loss", "nll_loss", "ppl", "sample_size", "ups", "rows_s", "data_wait", "gnorm", "clip", "lr"):
        assert name in inner[0], name
    assert any("valid_loss" in entry for entry in found) and any("train_loss" in entry for entry in found)


def test_a_run_that_saves_nothing_says_so(log, tmp_path):
    text = "\n".join(log("--log-format=none", "--no-save", "--max-update=1"))
    assert "(nothing is saved)" in text and "evaluate it" not in text and "--max-update=1 is reached" in text
    assert not list(tmp_path.glob("*.pt"))
