"""Dataclass fields that double as command line flags, and the values that flags take."""

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from utils.errors import UserError

LARGEST_SEED = 2**32 - 1  # NumPy's


def option(default: Any, text: str) -> Any:
    """A dataclass field with its help text; fairseq's flag generator reads both."""
    return field(default=default, metadata={"help": text})


def program_name(usual: str) -> str:
    """What usage and error lines call the running program: "ofa COMMAND" if `ofa` started it, else its usual name."""
    return sys.argv[0] if sys.argv[0].startswith("ofa ") else usual


def positive(text: str) -> int:
    """For argparse: an integer of at least 1."""
    return _whole(text, 1, "a positive integer")


def not_negative(text: str) -> int:
    """For argparse: an integer of at least 0."""
    return _whole(text, 0, "an integer of at least 0")


def seed(text: str) -> int:
    """For argparse: a seed that every random generator takes."""
    return _whole(text, 0, f"an integer from 0 to {LARGEST_SEED}", LARGEST_SEED)


def path_of(text: str) -> Path:
    """For argparse: a path; an empty one would be the working directory. `~` is expanded, also behind `--flag=`."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(os.path.expanduser(text))


def setting(text: str) -> tuple[str, Any]:
    """For argparse: NAME=VALUE; what is no Python literal is a text."""
    name, mark, value = text.partition("=")
    if not mark:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def find_vqgan(checkpoint: Path, given: Sequence[str] | None) -> tuple[Path, Path] | None:
    """The VQGAN's two files: those given, or `ofa_demo_vqgan/{last.ckpt,model.yaml}` beside `ofa_demo.pt`.

    Raises UserError for a given file that is not there.
    """
    if given is None:
        folder = checkpoint.with_name(f"{checkpoint.stem}_vqgan")
        beside = folder / "last.ckpt", folder / "model.yaml"
        return beside if all(path.is_file() for path in beside) else None
    weights, config = map(Path, given)
    if missing := [path for path in (weights, config) if not path.is_file()]:
        raise UserError(f"There is no {missing[0]}: name the VQGAN's last.ckpt and model.yaml with --vqgan.")
    return weights, config


def _whole(text: str, least: int, what: str, most: int = 10**18) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} must be {what}")
    return int(text)
