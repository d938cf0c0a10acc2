"""Reading and writing `.safetensors` files, with the rest of a checkpoint as JSON in the file's header.

The format has no checksums, so what is written here carries a digest of its content, which is compared when the file
is read. Files of other programs have none.
"""

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from utils.files import atomic_write

logger = logging.getLogger(__name__)

# Weights, and what belongs to a training run, not to a model.
NOT_STORED = ("model", "optimizer_history", "last_optimizer_state", "extra_state", "task_state", "criterion")
HEADER = "checkpoint"
DIGEST = "digest"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and the entries `write_tensors` stored with them (none in other programs' files).

    Raises:
        SafetensorError, OSError: unreadable. ValueError: content that is not what was written, or entries that are no
            JSON object.
    """
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata() or {}
    text = metadata.get(HEADER, "{}")
    if metadata.get(DIGEST, digest := _digest(state, text)) != digest:
        raise ValueError(f"its content does not match its {DIGEST}")
    entries = json.loads(text)
    if not isinstance(entries, dict):
        raise ValueError(f"the entry {HEADER!r} of its header is not a JSON object")
    entries = {name: value for name, value in entries.items() if name not in NOT_STORED}
    if isinstance(entries.get("args"), dict):
        entries["args"] = argparse.Namespace(**entries["args"])
    return state, entries


def write_tensors(path: Path, state: Mapping[str, Tensor], checkpoint: Mapping[str, Any]) -> None:
    """Writes tensors and the entries of a checkpoint that describe them; training history is left out.

    Args:
        state: names and tensors; those that share memory are stored once each.
        checkpoint: as `load_checkpoint` returns it. Tuples become lists; what JSON cannot hold is left out.
    """
    entries = {}
    for name, value in checkpoint.items():
        if name not in NOT_STORED and value is not None:
            try:
                entries[name] = json.loads(json.dumps(value, default=_plain))
            except TypeError as error:
                logger.warning("%s of the checkpoint is left out of %s (%s)", name, path, error)
    tensors, text = _separate(state), json.dumps(entries)
    with atomic_write(path) as file:
        save_file(tensors, file.name, metadata={"format": "pt", HEADER: text, DIGEST: _digest(tensors, text)})
        os.chmod(file.name, os.fstat(file.fileno()).st_mode)  # it put a file of its own there
        with open(file.name, "rb") as written:
            os.fsync(written.fileno())


def _digest(state: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, and the entries."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(state):
        tensor = state[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"it holds a {type(value).__name__}")


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors without common memory, which is what the format holds."""
    tensors, seen = {}, set()
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if storage in seen else tensor.contiguous()
        seen.add(storage)
    return tensors
