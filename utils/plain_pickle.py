"""Pickles of plain values - dicts, lists, texts, numbers -, read without executing what they name."""

import pickle
from collections import defaultdict
from typing import Any, BinaryIO

# Containers and numbers that released files name; "__builtin__" is how Python 2 wrote "builtins".
_GLOBALS: dict[tuple[str, str], type] = {
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "long"): int,
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (dict, float, int)},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _GLOBALS[module, name]


def load_plain_pickle(file: BinaryIO) -> Any:
    """Content of an open pickle; nearly any exception if it is damaged or names anything that could run code."""
    return _PlainUnpickler(file, encoding="latin-1").load()
