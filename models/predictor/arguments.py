"""What callers hand over, checked before anything is computed: each mistake is a `UserError` that names it."""

import operator
import os
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, fields
from typing import Any, Optional, get_args

import numpy as np
import torch
from PIL import Image

from data.text import BPE_FILES, has_words
from models.predictor.images import PreparedImage
from utils.errors import UserError
from utils.files import whole_characters

IMAGE_TYPES = (str, os.PathLike, bytes, Image.Image, np.ndarray, PreparedImage)
DEVICES = ("cpu", "cuda", "mps", "xpu")
# Texts that may be empty: the name of nothing is a name.
MAY_BE_EMPTY = ("objects", "premises")
MAY_BE_ZERO = ("num_bins", "code_dict_size")
PATHS = ("bpe_dir", "ans2label_file", "data")


@dataclass(frozen=True)
class Choices:
    """A closed set of answers, each once."""

    names: tuple[str, ...]


def columns(optional: Collection[str] = (), **values: Any) -> tuple[list[list[Any]], bool]:
    """The arguments as lists of equal length, single items and None repeated, and whether no list was among them.

    Args:
        optional: names of arguments that may be None, or hold None.
        values: `images`, `candidates` (`Choices`), and texts under any other name.

    Raises:
        UserError: lists of different length, an item that is None, of a wrong type or without words.
    """
    lengths = {name: len(value) for name, value in values.items() if isinstance(value, list | tuple)}
    if len(set(lengths.values())) > 1:
        counts = " and ".join(f"{count} {name}" for name, count in lengths.items())
        raise UserError(f"There are {counts}: pass equally many of each, or one for all.")
    count = next(iter(lengths.values()), 1)
    filled = []
    for name, value in values.items():
        column = list(value) if name in lengths else [value] * count
        for number, item in enumerate(column if name in lengths else [value]):
            if item is not None or name not in optional:
                _check_item(name, f"{name}[{number}]" if name in lengths else name, item)
        filled.append(column)
    return filled, not lengths


def _check_item(name: str, where: str, item: Any) -> None:
    if isinstance(item, Choices):
        return
    types, what = (IMAGE_TYPES, "a path, bytes, a Pillow image or an array") if name == "images" else (str, "a text")
    if item is None:
        raise UserError(f"{where} is None: give {what}.")
    if not isinstance(item, types):
        raise UserError(f"{where} is of type {type(item).__name__}: give {what}.")
    if not isinstance(item, str):
        return
    if name == "images":
        if not item.strip():
            raise UserError(f"{where} is empty: give {what}.")
    elif not whole_characters(item):
        raise UserError(f"{where} holds half of a surrogate pair, which is not a character: correct the text.")
    elif name not in MAY_BE_EMPTY and not has_words(item):
        raise UserError(f"{where}: the text has no words.")


def answer_sets(name: str, given: Any) -> Choices | list[Choices]:
    """Candidates as one set for all or, of a list of lists, one for each question.

    Raises UserError for a text in place of a list, a set without answers, and answers that are no texts or empty.
    """
    if isinstance(given, list | tuple) and given and all(isinstance(answers, list | tuple | Set) for answers in given):
        return [choices(f"{name}[{number}]", answers) for number, answers in enumerate(given)]
    return choices(name, given)


def choices(name: str, given: Any) -> Choices:
    """One set of candidates, repeated ones once; see `answer_sets`."""
    if not isinstance(given, list | tuple | Set | np.ndarray) and not hasattr(given, "__next__"):
        shown = f"{given!r:.40}" if isinstance(given, str) else f"of type {type(given).__name__}"
        raise UserError(f"{name} is {shown}: give a list of texts, [{given!r:.40}] for a single one.")
    names = list(given)
    for number, text in enumerate(names):
        if not isinstance(text, str):
            raise UserError(f"{name}[{number}] is of type {type(text).__name__}: give a text.")
        if not text.strip():
            raise UserError(f"{name}[{number}] is empty: remove it.")
        if not whole_characters(text):
            raise UserError(f"{name}[{number}] holds half of a surrogate pair, which is not a character: correct it.")
    if not names:
        raise UserError(f"{name} is empty: give a list of texts.")
    return Choices(tuple(dict.fromkeys(map(str, names))))


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An integer of at least `least`; UserError for anything else."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise UserError(f"{name} must be {expected}, not {value!r:.40}.")
    return number


def check_options(given: Mapping[str, Any], kinds: Collection[type]) -> dict[str, Any]:
    """Options by name, of the types of the dataclasses `kinds`; UserError for an unknown name or a wrong value."""
    types = {field.name: field.type for options_class in kinds for field in fields(options_class)}
    if unknown := sorted(given.keys() - types.keys()):
        raise UserError(f"There is no option {', '.join(unknown)}: choose among {', '.join(sorted(types))}.")
    return {name: _option(name, value, types[name]) for name, value in given.items()}


def _option(name: str, value: Any, wanted: Any) -> Any:
    types = [kind for kind in get_args(wanted) or (wanted,) if kind is not type(None)]
    if int in types:
        return check_count(name, value, 0 if name in MAY_BE_ZERO or name.endswith("_layers") else 1)
    if name in PATHS and isinstance(value, os.PathLike):
        return os.fspath(value)
    accepted = (int, float) if float in types else tuple(types)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in types) or value != value:
        kind = {str: "a text", bool: "True or False", float: "a number"}[types[0]]
        raise UserError(f"{name} must be {kind}, not {value!r:.40}.")
    if name == "bpe" and value not in BPE_FILES:
        raise UserError(f"bpe must be {' or '.join(BPE_FILES)}, not {value!r:.40}.")
    return value


def check_path(name: str, value: Any) -> None:
    """Raises UserError for what is no path."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UserError(f"{name} must be a path, not {value!r:.40}.")


def check_vqgan(files: Any) -> tuple[str, str] | None:
    """Checkpoint and yaml of a VQGAN; UserError for anything but two paths or None."""
    if files is None:
        return None
    if not isinstance(files, list | tuple) or len(files) != 2:
        raise UserError(f"vqgan must be a pair (checkpoint, yaml), not {files!r:.80}.")
    for file in files:
        check_path("Each file of vqgan", file)
    return str(files[0]), str(files[1])


def pick_device(device: Any) -> torch.device:
    """The device of a name, "auto" a GPU if there is one; UserError for none, and for one that is not here."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError
        chosen = torch.device(device)
        if chosen.type not in DEVICES:
            raise TypeError
    except (RuntimeError, TypeError, ValueError):
        raise UserError(f"device={device!r:.40} is unknown: choose auto, cpu or cuda.") from None
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError):
        raise UserError(f"device={str(chosen)!r} is not available on this machine: choose auto or cpu.") from None
    return chosen


def check_flag(name: str, value: Optional[bool]) -> None:
    """Raises UserError unless the value is True, False or None."""
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{name} must be True, False or None, not {value!r:.40}.")
