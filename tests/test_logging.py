"""Logging that ends with the program it belongs to: the caller's root logger, streams and files are left alone."""

import io
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

import train
from ofa_module import cli
from utils.errors import UserError
from utils.logs import program_logging

ROOT = Path(__file__).parents[1]
logger = logging.getLogger("a.program")


@contextmanager
def left_alone():
    """The stream of a program around ours, with a handler and a level of its own.

    Asserts that its logging and its warnings are the same afterward, and that no log file is open.
    """
    root, handler = logging.getLogger(), logging.StreamHandler(io.StringIO())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    before = root.handlers[:], root.level, warnings.filters[:]
    try:
        yield handler.stream
        assert before == (root.handlers, root.level, warnings.filters)
        open_files = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        assert not handler.stream.closed and not [file for file in open_files if file.endswith("a.log")]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def test_lines_go_to_stdout_and_file_and_caller(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LOGLEVEL", raising=False)
    file = tmp_path / "logs" / "a.log"
    with left_alone() as callers:
        for word in ("first", "second"):
            with program_logging(str(file)):
                logger.info(word)
                logger.debug("nothing")
            logger.info("after")
    written = file.read_text()
    assert capsys.readouterr().out == written
    assert [line.rsplit(" ", 1)[1] for line in written.splitlines()] == ["first", "second"]
    assert " - test_logging.py[line:" in written and "] - INFO: first" in written
    assert callers.getvalue() == "first\nsecond\n"


@pytest.fixture
def cfg(tmp_path):
    return train.parse_args(
        ["train.tsv,val.tsv", "--task=caption", "--arch=ofa_demo", "--cpu", f"--log-file={tmp_path}/a.log"]
    )


def test_run_leaves_the_caller_alone(cfg, tmp_path, capsys):
    def program(_):
        logger.info("it runs")
        logging.getLogger().addHandler(logging.FileHandler(tmp_path / "own_a.log"))
        raise UserError("No such thing.")

    with left_alone(), pytest.raises(SystemExit) as caught:
        cli.run(program, cfg)
    assert caught.value.code == 2
    assert "it runs" in (tmp_path / "a.log").read_text()
    assert capsys.readouterr().err.endswith("error: No such thing.\n")


def test_run_leaves_the_caller_alone_after_any_error(cfg):
    with left_alone(), pytest.raises(ZeroDivisionError):
        cli.run(lambda _: 1 // 0, cfg)


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_of_other_gpus_log_too(cfg, tmp_path, capsys, rank):
    """`run`'s program in a process that fairseq started, which has no handler: only the first one tells all."""
    cfg.distributed_training.distributed_rank = rank

    def program(_):
        logger.info("news")
        logger.warning("trouble")

    with left_alone():
        cli._logged(program, f"{tmp_path}/a.log", os.getpid() + 1, cfg)
    words = [line.rsplit(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert words == (["news", "trouble"] if rank == 0 else ["trouble"])
    assert (tmp_path / "a.log").exists() == (rank == 0)


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_imports_configure_no_logging(program):
    """Not even those of fairseq's modules that do so themselves; for the core see `test_layers`."""
    code = f"import logging, {program}; assert not logging.root.handlers and logging.root.level == logging.WARNING"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_interrupt_that_python_ignores_comes_again(cfg, capsys):
    """As in a finalizer, or in what runs when a process is forked."""

    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def program(_):
        made = Finalized()
        del made
        for _ in range(1000):
            time.sleep(0.001)
        raise AssertionError("the interrupt was lost")

    hook, before = sys.unraisablehook, signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(SystemExit, match="130"):
        cli.run(program, cfg)
    signal.signal(signal.SIGINT, before)  # ignored where the tests run in the background of a script
    assert "interrupted." in capsys.readouterr().err and sys.unraisablehook is hook
