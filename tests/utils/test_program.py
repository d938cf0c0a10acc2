"""How programs end: a sentence and 2, 130 after Ctrl-C, 143 after SIGTERM, and what they return otherwise."""

import importlib
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import ofa_names
from utils.errors import UserError
from utils.program import program, sigterm_interrupts

PROGRAMS = {
    "data.build": ("data.builders.build", "parse_args", ["gigaword"]),
    "data.build_pretrain": ("data.builders.pretrain", "parse_args", []),
    "utils.image_codes": ("data.builders.image_codes", "parse_args", []),
    "data.validate": ("data.validate", "open_rows", ["caption", __file__]),
    "utils.convert": ("models.weights.convert", "convert", ["a", "b"]),
    "metrics.document_frequencies": ("metrics.document_frequencies", "count_documents", ["a", "b"]),
    "predict.py": ("predict", "predict", ["caption", "a.png", "--checkpoint=a.pt"]),
}


def stop(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", PROGRAMS)
def test_ctrl_c_is_one_line(name, monkeypatch, capsys):
    module, function, argv = PROGRAMS[name]
    monkeypatch.setattr(importlib.import_module(module), function, stop)
    assert importlib.import_module(module).main(argv) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{name}: interrupted." in error


@pytest.mark.parametrize("name", PROGRAMS)
def test_sigterm_is_one_line_and_cleans_up(name, monkeypatch, capsys):
    module, function, argv = PROGRAMS[name]
    cleaned = []

    def end(*args, **kwargs):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setattr(importlib.import_module(module), function, end)
    assert importlib.import_module(module).main(argv) == 143
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{name}: interrupted." in error
    assert cleaned == [signal.SIG_DFL] == [signal.getsignal(signal.SIGTERM)]  # a second one ends the process


LOADS = """
import sys, time
from torch.utils.data import DataLoader
from utils.program import program

class Slow(list):
    def __getitem__(self, n):
        time.sleep(0.1)
        return n

@program("slow.py")
def main(argv=None):
    for n in DataLoader(Slow(range(1000)), num_workers=2):
        print(n, flush=True)

sys.exit(main())
"""


def test_sigterm_to_workers_of_a_data_loader_too_is_one_line():
    argv = [sys.executable, "-c", LOADS]
    with subprocess.Popen(
        argv, cwd=ofa_names.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert running.stdout is not None and running.stdout.readline()
        os.killpg(running.pid, signal.SIGTERM)
        _, error = running.communicate(timeout=60)
    assert (running.returncode, error.count("\n")) == (143, 1) and "interrupted." in error


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_python_ignores_comes_again(number, code, monkeypatch, capsys):
    """As in a finalizer, or in what runs when a process is forked."""

    class Finalized:
        def __del__(self):
            signal.raise_signal(number)

    def work(*args, **kwargs):
        made = Finalized()
        del made
        for _ in range(1000):
            time.sleep(0.001)

    monkeypatch.setattr("data.validate.open_rows", work)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script
    try:
        assert importlib.import_module("data.validate").main(["caption", __file__]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.endswith("data.validate: interrupted.\n")


def test_sigterm_that_the_caller_handles_stays_theirs():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with sigterm_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("file, module, name", [
    ("predict.py", None, "predict.py"),
    ("evaluate.py", None, "evaluate.py"),
    ("data/validate.py", "data.validate", "python -m data.validate"),
])  # fmt: skip
def test_ctrl_c_during_imports_is_one_line(file, module, name, monkeypatch, capsys):
    main = SimpleNamespace(__file__=str(ofa_names.ROOT / file), __spec__=module and SimpleNamespace(name=module))
    monkeypatch.setitem(sys.modules, "__main__", main)
    ofa_names._interrupted(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == f"{name}: interrupted.\n"
    ofa_names._interrupted(ZeroDivisionError, ZeroDivisionError("a fault"), None)
    assert "ZeroDivisionError: a fault" in capsys.readouterr().err


def test_programs_install_it():
    code = "import runpy, sys; sys.argv = ['predict.py', '-h']; import signal, threading, os\n"
    code += "sys.modules['__main__'].__file__ = 'predict.py'; import ofa_names; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], cwd=ofa_names.ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stderr == "predict.py: interrupted.\n"


@pytest.mark.parametrize("error", [UserError("wrong"), OSError(28, "No space left on device")])
def test_mistakes_are_sentences(error, capsys, monkeypatch):
    @program("python -m x")
    def main(argv=None):
        raise error

    assert main() == 2 and capsys.readouterr().err.startswith("python -m x: error: ")
    monkeypatch.setattr(sys, "argv", ["ofa x"])
    assert main([]) == 2 and capsys.readouterr().err.startswith("ofa x: error: ")


def test_what_main_returns():
    @program("python -m x")
    def main(argv=None):
        return len(argv)

    assert main(["a"]) == 1 and main.__name__ == "main"
    with pytest.raises(ZeroDivisionError):  # a fault of ours shows where it is
        program("y")(lambda argv: 1 // 0)([])
