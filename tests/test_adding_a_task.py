"""docs/adding_a_task.md: its four pieces of code, added to a copy of the repository, are a task that works."""

import json
import os
import re
import shutil
import subprocess
import sys
from textwrap import dedent

import pytest

from tests.programs import ROOT

PACKAGES = ("criterions", "data", "digits", "metrics", "models", "ofa_module", "tasks", "utils")
NAME = "sorted_words"
TRAIN = [
    "train.tsv,val.tsv", f"--task={NAME}", "--arch=ofa_demo", "--criterion=adjust_label_smoothed_cross_entropy",
    "--selected-cols=0,1,2", "--bpe-dir=digits/BPE", "--patch-image-size=32", "--code-dict-size=0", "--num-bins=0",
    "--optimizer=adam", "--lr=1e-3", "--lr-scheduler=fixed", "--max-epoch=1", "--batch-size=4", "--log-format=simple",
    "--best-checkpoint-metric=score", "--maximize-best-checkpoint-metric", "--save-dir=save", "--cpu",
    "--encoder-layers=1", "--decoder-layers=1", "--resnet-type=resnet10", "--num-workers=0",
]  # fmt: skip
EVALUATE = ["val.tsv", f"--task={NAME}", "--gen-subset=val", "--cpu", "--num-workers=0", "--batch-size=4"]
# All programs in one process: starting each would take longer than what it does.
PROGRAM = f"""
import sys
import data.validate
assert data.validate.main(["{NAME}", "train.tsv", "--bpe-dir=digits/BPE", "--workers=0"]) == 0
assert data.validate.main(["{NAME}", "bad.tsv", "--bpe-dir=digits/BPE", "--workers=0"]) == 1
import train
train.main({TRAIN!r})
import evaluate
evaluate.main([*{EVALUATE!r}, "--path=save/checkpoint_last.pt", "--results-path=results"])
evaluate.main([*{EVALUATE!r}, "--bpe-dir=digits/BPE", "--selected-cols=0,1,2",
               "--check-submission=results/val_predict.json"])
"""


@pytest.fixture
def copy(tmp_path):
    """The product with the page's task in it."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path)
    page = (ROOT / "docs" / "adding_a_task.md").read_text(encoding="utf-8")
    row, dataset, task, line = (
        dedent(block) for block in re.findall(r"^    ```(?:python|text)\n(.*?)^    ```", page, re.M | re.S)
    )
    for name, first, added in (
        ("data/tasks.py", "TASKS: dict[str, Task] = {\n", row),
        ("ofa_module/__init__.py", "PLUGIN_MODULES = (\n", line),
    ):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.count(first) == 1
        (tmp_path / name).write_text(text.replace(first, first + added), encoding="utf-8")
    for folder, text in (("data", dataset), ("tasks", task)):
        assert not (tmp_path / folder / f"{NAME}.py").exists()
        (tmp_path / folder / f"{NAME}.py").write_text(text, encoding="utf-8")
    return tmp_path


def test_the_task_of_the_page_is_checked_trained_and_evaluated(copy):
    texts = ["a red seven", "two green ones", "a blue three", "the white zero"]
    rows = [f"{n}\t{text}\t{'yes' if text.split() == sorted(text.split()) else 'no'}" for n, text in enumerate(texts)]
    for name, lines in (("train", rows), ("val", rows), ("bad", [*rows[1:], "9\ta red seven\tperhaps"])):
        (copy / f"{name}.tsv").write_text("".join(f"{line}\n" for line in lines))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "the label 'perhaps' is neither yes nor no" in said and "3 of 4 rows are good." in said
    assert "| score " in said and "val_predict.json is complete: 4 records." in said
    records = json.loads((copy / "results" / "val_predict.json").read_text())
    assert [record["uniq_id"] for record in records] == ["0", "1", "2", "3"]
    assert {record["answer"] for record in records} <= {"yes", "no"}
    right = sum(record["answer"] == row.split("\t")[2] for record, row in zip(records, rows, strict=True))
    assert json.loads((copy / "results" / "val_scores.json").read_text()) == {"score": right / 4}


def test_no_other_file_is_listed_as_changed():
    """What the page adds names the task; the repository without it does not."""
    named = [str(path) for folder in PACKAGES for path in ROOT.glob(f"{folder}/**/*.py") if NAME in path.read_text()]
    assert named == []
