"""benchmarks/gpu.sh at tiny size on the CPU: every part runs, its checks pass, and the page holds its figures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import measure
from tests.programs import interpreter

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def test_every_part_writes_its_figures(tmp_path: Path) -> None:
    env = {**os.environ, "OFA_PYTHON": interpreter(), "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    flags = ["--device=cpu", "--tiny", "--parts=checks,tasks,training,decoding,attention"]
    done = subprocess.run(["bash", ROOT / "benchmarks/gpu.sh", *flags], env=env, capture_output=True, text=True)
    page = (tmp_path / "gpu_none.md").read_text()
    assert done.returncode == 0, page + done.stderr[-3000:]
    assert "7 of 7 checks passed." in page and "| DDP and exchange | equal | one process, gloo |" in page
    assert re.search(r"\| cola \| fp32 \| [\d.]+ \| yes \| 5 of 5 \| 5 of 5 \|", page)
    for loop in ("train.py", "plain, bf16"):
        assert re.search(rf"\| ofa_demo \| {loop} +\| \d \| [\d.,]+ \| [\d.]+ \|", page)
    for answers in ("encoder alone", "caption, beam 5", "answer of 3,129, exact", "box, beam 5", "16 codes, sampled"):
        assert re.search(rf"\| ofa_demo \| {answers} \| \d \| [\d.,]+ \| [\d.,]+ \|", page)
    assert re.search(r"\| bias \| [\d.]+ \| [\d.]+ \|", page) and "A step of beam search: 0 kernels" in page


def test_a_part_that_fails_is_named_and_the_others_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = {"none": gpu.Part("Missing", "no_such_part"), "attention": gpu.PARTS["attention"]}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--device=cpu", "--tiny", "--parts=none,attention", f"--output={tmp_path}/page"]
    )
    assert gpu.main() == 1
    page = (tmp_path / "page").read_text()
    assert "FAILED" in page and "no_such_part" in page and "| no bias |" in page


def test_cells(capsys: pytest.CaptureFixture[str]) -> None:
    measure.add_row("a|b", 3, 0.12345, 12345.6, "two\nlines")
    assert capsys.readouterr().out == "| a/b | 3 | 0.123 | 12,346 | two lines |\n"
