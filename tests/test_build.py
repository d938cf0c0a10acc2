"""Two commands from COCO's files to a trained model and a leaderboard file: the build, and what it prints."""

import json
import os
import shlex
import subprocess

import pytest

from data.builders.build import main
from tests.originals import write_originals
from tests.programs import ROOT, run

pytestmark = pytest.mark.slow


def start(words, *more, **env):
    """Runs what a run script would, in a forked process: its name after `bash` in the words of a command line."""
    at = words.index("bash")
    given = dict(word.split("=", 1) for word in words[:at])
    settings = {"SIZE": "demo", "GPUS_PER_NODE": "1", "PRECISION": "fp32", "OFA_PYTHON": "python", "DRY_RUN": "1"}
    printed = subprocess.run(
        ["sh", *words[at + 1 :], *more], env={**os.environ, **settings, **given, **env}, capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    _, program, *flags = shlex.split(printed.stdout)
    return run(program, *flags)


def test_cocos_files_become_a_leaderboard_file(tmp_path, capsys):
    coco = write_originals(tmp_path, train=8) / "coco"
    splits = [
        word for split in ("train", "val", "test") for word in (f"--{split}", f"{coco}/captions_{split}2014.json")
    ]
    assert main(["caption", f"--images={coco / 'caption'}", *splits, f"--output={tmp_path / 'my data'}"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    start(
        command, "--restore-file=none", "--max-update=2", "--batch-size=4", "--update-freq=1", OUTPUT_DIR=str(tmp_path)
    )
    (checkpoint,) = tmp_path.glob("stage1_checkpoints/*/checkpoint_last.pt")
    data = [f"DATA_DIR={tmp_path}/my data", f"DATA_FILES={tmp_path}/my data/caption_data/caption_test.jsonl"]
    evaluate = [*data, "bash", str(ROOT / "run_scripts/caption/evaluate_caption.sh")]
    start(evaluate, CHECKPOINT=str(checkpoint), RESULTS_DIR=str(tmp_path))
    predicted = json.loads((tmp_path / "caption/test_predict.json").read_text())
    images = json.loads((coco / "captions_test2014.json").read_text())["images"]
    assert [row["image_id"] for row in predicted] == [image["id"] for image in images]
