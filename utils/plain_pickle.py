"""Pickles of plain values - dicts, lists, texts, numbers -, read without executing what they name.

NumPy's scalars come out as Python's numbers and texts, its arrays as lists: NumPy's own unpickling, which trusts its
input, does not run.
"""

import pickle
import re
from collections import Counter, OrderedDict, defaultdict
from typing import Any, BinaryIO

import numpy as np

_PLAIN_TYPE = re.compile(r"[?bhilqBHILQefd]|[iuf][1248]|b1|O8|[US][0-9]{1,6}")


class _Type:
    """Stands for a NumPy type of numbers, texts or (`dtype` None) objects while a pickle is read."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _PLAIN_TYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"it refers to NumPy's type {str(code)[:20]!r}")
        self.dtype = None if code == "O8" else np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order of what NumPy stores of a type."""
        if isinstance(state, tuple) and len(state) > 1 and self.dtype is not None and state[1] in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")


def _scalar(kind: Any, data: Any = b"") -> Any:
    """A number or text of NumPy as Python's own."""
    if not isinstance(kind, _Type) or kind.dtype is None:
        raise pickle.UnpicklingError("it holds a NumPy value of no plain type")
    data = data.encode("latin-1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(data, kind.dtype, 1)[0].item() if kind.dtype.itemsize else kind.dtype.type().item()


class _Array(list[Any]):
    """The values of a NumPy array, whatever its shape."""

    def __setstate__(self, state: Any) -> None:
        """Takes version, shape, type, order and values as NumPy stores them."""
        *_, kind, _, data = state
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError("it holds a NumPy array of no plain type")
        data = data.encode("latin-1") if isinstance(data, str) else data
        self[:] = data if kind.dtype is None else np.frombuffer(data, kind.dtype).tolist()


def _array(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """An array as protocol 5 stores it."""
    array = _Array()
    array.__setstate__((shape, kind, order, data))
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as protocols 0 to 2 of Python 3 write them."""
    return text.encode("latin-1")


# What released files and users' own name; "__builtin__" is how Python 2 wrote "builtins".
_GLOBALS: dict[tuple[str, str], Any] = {
    **{("collections", kind.__name__): kind for kind in (defaultdict, OrderedDict, Counter)},
    ("__builtin__", "long"): int,
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (dict, float, int)},
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module[:60]}.{name[:60]}")
        return _GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it names objects that are not in it")


def load_plain_pickle(file: BinaryIO) -> Any:
    """Content of an open pickle; nearly any exception if it is damaged or names anything that could run code."""
    return _PlainUnpickler(file, encoding="latin-1").load()
