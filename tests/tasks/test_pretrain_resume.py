"""Pretraining killed in an epoch and started again: every sample of every file, and the model, are as without it.

Started again with another batch size or number of processes, it reads the rows that were left, each once.
"""

import json
from collections import Counter

import pytest
import torch

import train
from data.builders.image_codes import main as image_codes
from digits.__main__ import main as build_demo
from tasks.unify_task import UnifyTask
from tests.programs import ROOT, SMALL, kill_after, run
from tests.tasks.recorded_training import RecordedTask

PROGRAM = ROOT / "tests/tasks/recorded_training.py"
pytestmark = pytest.mark.slow
ROWS = {"vision_language": 25, "text": 7, "image": 7, "detection": 7}
SAVED, UPDATES = 3, 14  # the first checkpoint, and the whole run: 2 epochs of 7 updates in two processes
ARGS = [
    *SMALL, "--task=unify_task", "--max-source-positions=1024",
    "--criterion=adjust_label_smoothed_cross_entropy", "--optimizer=adam", "--lr=1e-3",
    "--lr-scheduler=polynomial_decay", "--warmup-ratio=0.1", "--selected-cols=0,1,2,3,4,5,6,7", "--dropout=0.1",
    "--encoder-drop-path-rate=0.1", "--patch-image-size=48", "--max-image-size=64", "--code-image-size=32",
    "--largest-short-side=52", "--sample-patch-num=4", "--code-dict-size=1024", "--num-bins=65",
    f"--bpe-dir={ROOT}/digits/BPE", "--image-selected-cols=0,2,3", "--text-ratio=0.5", "--image-ratio=0.5",
    "--detection-ratio=0.5", "--disable-validation", "--find-unused-parameters", "--num-workers=1",
    f"--save-interval-updates={SAVED}", "--keep-interval-updates=1", "--no-epoch-checkpoints", "--log-format=simple",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags that name the four files; an id says which file it is from."""
    out = tmp_path_factory.mktemp("demo")
    assert build_demo([str(out), "--tasks=pretrain", "--size=48", f"--train={ROWS['vision_language']}"]) == 0
    folder, vqgan = out / "pretrain_data", ROOT / "checkpoints/ofa_demo_vqgan"
    files = {name: folder / f"{name}_examples.tsv" for name in ROWS}
    models = [f"--vqgan-model-path={vqgan}/last.ckpt", f"--vqgan-config-path={vqgan}/model.yaml"]
    images = [f"--file={folder}/picture_examples.tsv", f"--outputs={files['image']}", "--selected-cols=0,0,1,1"]
    assert image_codes(["encode", *models, *images, "--code-image-size=64", "--crop=32"]) == 0
    for name, file in files.items():
        lines = file.read_text().splitlines(keepends=True)
        assert len(lines) == ROWS[name]
        file.write_text("".join(f"{name}-{line}" for line in lines))
    sources = [f"--{name}-data={files[name]}" for name in ROWS if name != "vision_language"]
    return [str(files["vision_language"]), f"--neg-sample-dir={folder}/negative_sample", *sources, *ARGS]


@pytest.fixture
def train_with(monkeypatch, one_thread):
    """Runs training to its end; one process is this one, which need not import everything again."""
    monkeypatch.setattr(UnifyTask, "setup_task", RecordedTask.setup_task)

    def train_with(args, processes, record):
        if processes > 1:
            return run(PROGRAM, *args, processes=processes, RECORD=str(record))
        monkeypatch.setenv("RECORD", str(record))
        return train.main(args)

    return train_with


def learned(record, processes):
    """Per process, what it learned from: number of the update, then ids and checksum of both parts of a batch."""
    files = [record.with_name(f"{record.name}.{rank}") for rank in range(processes)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def network(save_dir):
    state = torch.load(save_dir / "checkpoint_last.pt", weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] == UPDATES
    return state["model"]


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 4), (2, 2)])
def test_a_killed_run_learns_from_the_samples_that_would_have_come(data, train_with, tmp_path, processes, batch_size):
    whole, killed, resumed = (tmp_path / name for name in ("whole", "killed", "resumed"))
    args = [*data, f"--batch-size={batch_size}", "--max-epoch=2"]
    train_with([*args, f"--save-dir={whole}"], processes, record=whole)
    args.append(f"--save-dir={killed}")
    hold = {"RECORD": str(killed), "HOLD": str(SAVED + 2)}
    kill_after(killed / "checkpoint_last.pt", PROGRAM, *args, processes=processes, **hold)
    train_with(args, processes, record=resumed)
    expected, before, after = (learned(record, processes) for record in (whole, killed, resumed))
    for rank, steps in enumerate(expected):
        assert before[rank] == steps[: len(before[rank])] and SAVED <= len(before[rank]) <= SAVED + 2
        assert after[rank] == steps[SAVED:]
        files = {one.split("-")[0] for _, *parts in after[rank] for *ids, _ in parts for one in ids}
        assert files == set(ROWS)
    first, second = network(whole), network(killed)
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def test_restarts_with_other_settings_read_every_row_once(data, train_with, tmp_path):
    """8 -> 4 -> 6 rows a batch in 1 -> 2 -> 1 processes, then an epoch in 2 processes; 14 rows of each further file."""
    args = [*data, f"--save-dir={tmp_path}", "--max-epoch=2"]
    for number, (processes, batch_size, updates) in enumerate([(1, 8, 1), (2, 4, 2), (1, 6, 4), (2, 4, 8)]):
        record = tmp_path / f"record{number}"
        train_with([*args, f"--batch-size={batch_size}", f"--max-update={updates}"], processes, record)
    read: dict[int, Counter] = {1: Counter(), 2: Counter()}
    for record in tmp_path.glob("record*"):
        for line in record.read_text().splitlines():
            update, *parts = json.loads(line)
            read[1 if update < 4 else 2].update({one for *ids, _ in parts for one in ids})
    for epoch in (1, 2):
        pairs = {name: times for name, times in read[epoch].items() if name.startswith("vision_language")}
        assert len(pairs) == ROWS["vision_language"] and set(pairs.values()) == {1}
    further = {name: times for name, times in read[1].items() if name not in pairs}
    assert len(further) == 21 and set(further.values()) == {2}  # two passes over each file, without a gap
