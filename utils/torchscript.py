"""Tensors of a TorchScript archive, read without the code beside them.

`torch.jit.load` runs an archive's code, which can write files. Here only `data.pkl` is read, by an unpickler that
knows tensors, plain containers and modules as bags of attributes, and the storages it names.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_ENTRIES = 100_000  # modules and attributes, far above any model
# torch.FloatStorage -> float32 ...
_DTYPES = {
    "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
# Functions that give back their first argument in a type of TorchScript's.
_TYPED = {"restore_type_tag", "build_intlist", "build_tensorlist", "build_doublelist", "build_boollist"}


class _Module:
    """Attributes of a module; its class and what that would do are never looked at."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    """Reads `data.pkl` of an archive.

    What `find_class` gives out are types and bound methods: a pickle can set attributes of neither.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(_read(archive, f"{root}data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name.removesuffix("Storage") in _DTYPES:
            return _DTYPES[name.removesuffix("Storage")]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild
        if module == "torch.jit._pickle" and name in _TYPED:
            return self._first
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or key != str(int(key)):
            raise pickle.UnpicklingError(f"it refers to {pid!r:.80}")
        if key not in self._storages:
            data = bytearray(_read(self._archive, f"{self._root}data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if self._storages[key].dtype != dtype or self._storages[key].numel() != count:
            raise pickle.UnpicklingError(f"storage {key} has another size than stated")
        return self._storages[key]

    def _rebuild(self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        tensor = storage.as_strided(size, stride, offset)  # refuses what is outside the storage
        if tensor.numel() > storage.numel():
            raise pickle.UnpicklingError("a tensor is larger than its storage")
        return tensor

    def _first(self, value: Any, *_: Any) -> Any:
        return value


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; any error of `zipfile` if it is damaged."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Names as in a state dict and tensors: parameters, buffers and other attributes that are tensors.

    Raises:
        Exception: of nearly any type, where the archive is damaged or names anything but modules and tensors.
    """
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.count("/") == 1]
        root = next(root for root in roots if f"{root}data.pkl" in archive.namelist())
        module = _Unpickler(archive, root).load()
    found: dict[str, Tensor] = {}
    seen = 0
    waiting = [("", module)]
    while waiting:
        prefix, module = waiting.pop()
        for name, value in (module.attributes or {}).items():
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
            seen += 1
            if seen > MAX_ENTRIES:
                raise ValueError(f"it has more than {MAX_ENTRIES} modules and attributes")
    return found


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    """A part of an archive; torch compresses none, and one that is could be far larger than the file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{name} is compressed")
    return archive.read(name)
