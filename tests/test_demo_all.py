"""The demo of all tasks at smoke scale: every kind of step, the table, and going on where it was."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.programs import interpreter

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")

    def run(**env):
        given = {"OFA_DEMO_SCALE": "0.001", "DEMO_DIR": str(folder), "TASKS": "sst2", "OFA_PYTHON": interpreter()}
        return subprocess.run(
            ["bash", str(ROOT / "run_scripts" / "demo_all.sh")],
            env={**os.environ, **given, **env},
            capture_output=True,
            text=True,
            timeout=400,
        )

    return folder, run


def test_a_task_is_trained_and_scored_and_not_repeated(demo):
    folder, run = demo
    first = run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "| sst2 | acc |" in first.stdout and "| 0.5000 | 10 |" in first.stdout
    assert "vqa_gen | vqa_score | missing" in first.stdout and (folder / "page.png").stat().st_size > 10_000
    steps = [line.split()[2] for line in first.stdout.splitlines() if line.startswith("== ")]
    assert steps == ["data_sst2", "train_sst2", "test_sst2"]
    second = run()
    assert second.returncode == 0 and "== " not in second.stdout and "| sst2 | acc |" in second.stdout


def test_a_failing_step_is_named_and_ends_the_demo(demo):
    folder, run = demo
    (folder / "test_sst2.done").unlink()
    next(folder.glob("sst2/**/checkpoint_best.pt")).write_bytes(b"torn")
    done = run()
    assert done.returncode != 0 and "test_sst2 failed; see" in done.stderr and "checkpoint_best.pt" in done.stderr
