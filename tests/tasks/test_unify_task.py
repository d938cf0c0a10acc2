"""Pretraining through the front door: all four files, both parts of a batch, resuming, a missing folder."""

import shutil
from pathlib import Path

import pytest
import torch
from fairseq import tasks

import train
from models.generation import GenerationConfig
from tests.programs import SMALL
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
ARGS = [
    *SMALL, "--task=unify_task", "--max-source-positions=512", "--criterion=adjust_label_smoothed_cross_entropy",
    "--optimizer=adam", "--lr=1e-3", "--lr-scheduler=fixed", "--selected-cols=0,1,2,3,4,5,6,7", "--patch-image-size=64",
    "--bpe-dir=utils/BPE", "--sample-patch-num=3", "--disable-validation", "--cpu", "--log-interval=1", "--seed=3",
    "--batch-size=4", "--max-target-positions=512",
    "--scale-attn", "--no-epoch-checkpoints", "--log-format=simple", "--num-workers=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shutil.copytree(ROOT / "tests/golden/tsv/pretrain", tmp_path_factory.mktemp("golden") / "pretrain")


def argv(data, *more):
    sources = [f"--{name}-data={data}/{name}_examples.tsv" for name in ("text", "image", "detection")]
    return [f"{data}/vision_language_examples.tsv", *ARGS, *sources, f"--neg-sample-dir={data}/negative_sample", *more]


def batches(task, epoch=1, **options):
    task.load_dataset("train", epoch=epoch)
    iterator = task.get_batch_iterator(task.dataset("train"), max_sentences=4, seed=3, epoch=epoch, **options)
    return list(iterator.next_epoch_itr(shuffle=False))


def weights(save_dir):
    return torch.load(save_dir / "checkpoint_last.pt", weights_only=False)["model"]


def test_both_parts_are_learnt_and_logged(data, tmp_path, caplog):
    train.main(argv(data, f"--save-dir={tmp_path}", "--max-update=2", f"--log-file={tmp_path}/log"))
    text = (tmp_path / "log").read_text()
    assert "loss_v1=" in text and "loss_v2=" in text and "nan" not in text


def test_a_batch_holds_the_configured_shares(data):
    task = tasks.setup_task(train.parse_args(argv(data)).task)
    for first, second in batches(task):
        assert second["net_input"]["code_masks"].dtype == torch.bool
        assert first["net_input"]["src_tokens"].size(0) >= first["conf"].numel() / 2
        assert second["conf"].unique().tolist() == [2.0]
    absent = tasks.setup_task(train.parse_args(argv(data, "--text-data=", "--image-data=", "--detection-data=")).task)
    assert all(second == {} for _, second in batches(absent))


def test_two_processes_share_the_rows(data):
    task = tasks.setup_task(train.parse_args(argv(data)).task)
    rows = [
        row
        for rank in range(2)
        for batch in batches(task, num_shards=2, shard_id=rank)  # the last one of a process may be []
        for row in dict.fromkeys(batch[0]["rows"].tolist() if batch else [])
    ]
    assert sorted(rows) == list(range(len(task.dataset("train"))))


def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main(argv(data, f"--save-dir={whole}", "--max-update=3"))
    train.main(argv(data, f"--save-dir={parts}", "--max-update=2"))
    train.main(argv(data, f"--save-dir={parts}", "--max-update=3"))
    first, second = weights(whole), weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_refusals(data, tmp_path):
    with pytest.raises(UserError, match="--neg-sample-dir"):
        batches(tasks.setup_task(train.parse_args(argv(data, "--neg-sample-dir=")).task))
    with pytest.raises(UserError, match="only trains"):
        tasks.setup_task(train.parse_args(argv(data)).task).evaluate([], {}, GenerationConfig())
