"""Several processes of one command: their ends, and that none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.ranks import are_several, start

ROOT = Path(__file__).parents[2]


def python(code):
    return [sys.executable, "-S", "-c", f"import os, sys, time; rank = os.environ['RANK']; {code}"]


@pytest.mark.parametrize(
    "code, expected",
    [("sys.exit(0)", 0), ("sys.exit(1 - int(rank))", 1), ("sys.exit(int(rank))", 0), ("sys.exit(2)", 2)],
)
def test_the_first_code_counts(code, expected):
    assert start(python(code), 2) == expected


def test_one_that_fails_ends_the_others():
    began = time.monotonic()
    assert start(python("sys.exit(3) if rank == '1' else time.sleep(60)"), 2) == 3
    assert time.monotonic() - began < 30


def test_one_that_is_killed_is_said():
    with pytest.raises(UserError, match="A process was killed by SIGKILL: rerun"):
        start(python("os.kill(os.getpid(), 9) if rank == '1' else time.sleep(60)"), 2)


def test_processes_know_each_other(tmp_path):
    write = f"open('{tmp_path}/' + rank, 'w').write(os.environ['WORLD_SIZE'] + os.environ['MASTER_PORT'])"
    assert start(python(write), 3) == 0
    texts = {path.read_text() for path in tmp_path.iterdir()}
    assert len(texts) == 1 and texts.pop().startswith("3") and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_of_them(number, code, tmp_path):
    child = (
        "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
        f"open('{tmp_path}/' + rank, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    parent = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from utils.program import program\nfrom utils.ranks import start\n"
        f"main = program('x.py')(lambda argv: start({python(child)!r}, 2))\nsys.exit(main([]))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.PIPE, text=True)
    while len(pids := [path.read_text() for path in tmp_path.iterdir()]) < 2 or not all(pids):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(30) == code
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_alone_without_the_variables_of_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not are_several()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert not are_several()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert are_several()
