"""How programs end: a sentence and 2, 130 after Ctrl-C, and what they return otherwise."""

import importlib
import sys

import pytest

from utils.errors import UserError
from utils.program import program

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
