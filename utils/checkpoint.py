"""Reading and writing checkpoints: fairseq's `.pt`, Hugging Face folders, safetensors.

Nothing in a file is ever executed: torch unpickles with `weights_only`, besides tensors and plain containers only
`argparse.Namespace` (fairseq's options) and NumPy scalars (its scores) are allowed. OmegaConf containers are not:
released files hold plain dicts. What makes models of them is `models/weights`.
"""

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils import hf_layout
from utils.errors import UserError
from utils.files import atomic_write
from utils.original import with_original_options

if TYPE_CHECKING:
    from models.ofa import OFA

PathLike = str | os.PathLike[str]

_numpy_scalar = np.float64(0).__reduce__()[0]
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    # NumPy 1 and 2 write different names for the function that rebuilds a scalar.
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]


class DamagedCheckpointError(UserError):
    """A file that is empty, cut short or altered; see `previous_checkpoint`."""


def damaged(path: Path, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{path} is damaged or not a checkpoint ({reason}): copy it again or use an earlier one."
    )


def load_checkpoint(path: PathLike, mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint into fairseq's layout, tensors on the CPU.

    Args:
        path: a fairseq file, a bare state dict, a `.safetensors` file, or a folder in Hugging Face layout. The last
            three, and a file without a training history, come with an empty one: a trainer can start from them.
        mmap: map tensors instead of reading them: quick when few are needed, but never for a file that may be
            overwritten in place meanwhile, which kills the process.

    Returns:
        dict with "model" (state dict under fairseq's names) and, where the file has them, "cfg" or "args",
        "extra_state" (EMA in "ema"), "optimizer_history", "last_optimizer_state"; of a folder "image_processor".

    Raises:
        DamagedCheckpointError: an empty, truncated or altered file; files of before torch 1.6 have no checksums.
        UserError: no such file, not a checkpoint, or one that asks for code to be run.
    """
    path = Path(path)
    options: dict[str, Any] = {}
    source = path
    if os.path.isdir(path):
        source, options = hf_layout.find_weights(path), hf_layout.read_options(path)
    elif not os.path.isfile(path):  # unlike Path.is_file it is False for whatever cannot be looked at
        raise UserError(f"There is no checkpoint {path}: check the path.")
    content: Any
    entries: dict[str, Any] = {}
    if source.suffix == ".safetensors":
        content, entries = _read_safetensors(source)
    else:
        check_whole(source)
        content = unpickle(source, mmap)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint: name a checkpoint file.")
    weights: Any = content.get("model")
    if isinstance(weights, dict):
        _check_parts(content, path)
        return content if "extra_state" in content else {**without_history(weights), **content}
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        raise UserError(f"{path} is not a checkpoint (no entry 'model'): name a fairseq checkpoint or a state dict.")
    _check_parts(entries, path)
    if source != path and (images := hf_layout.read_image_processor(path)):
        entries = {"image_processor": images, **entries}
    if {"cfg", "args"} & set(entries):  # of the run that made the weights: they say more than config.json
        options = {}
    return {**without_history(hf_layout.to_fairseq_names(content), options or None), **entries}


def _check_parts(content: Mapping[str, Any], path: Path) -> None:
    """Raises UserError unless what stands beside the weights has the types that readers of it rely on."""
    options: Any = argparse.Namespace | dict
    kinds: dict[str, Any] = {"cfg": dict, "args": options, "extra_state": dict, "optimizer_history": list}
    kinds |= {"cfg.model": options, "cfg.task": options}
    parts = dict(content)
    if isinstance(cfg := content.get("cfg"), dict):
        parts |= {f"cfg.{name}": cfg.get(name) for name in ("model", "task")}
    for name, kind in kinds.items():
        if parts.get(name) is not None and not isinstance(parts[name], kind):
            raise UserError(f"{path} holds a {type(parts[name]).__name__} as {name!r}: copy the file again.")


def without_history(state: Mapping[str, Tensor], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Weights in the layout of a fairseq checkpoint whose training has not begun."""
    past = {"criterion_name": None, "optimizer_name": None, "lr_scheduler_state": {"best": None}, "num_updates": 0}
    iterator = {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}
    return {
        "args": None,
        "cfg": None if options is None else {"model": with_original_options({**options, "_name": "ofa"})},
        "model": dict(state),
        "optimizer_history": [past],
        "extra_state": {"train_iterator": iterator},
    }


def check_whole(path: Path) -> None:
    """Raises DamagedCheckpointError unless size, directory and checksums (which torch ignores) agree."""
    try:
        zipped = zipfile.is_zipfile(path)
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except zipfile.BadZipFile as error:  # its last bytes speak of an archive in several files
        raise damaged(path, str(error)) from error
    if not zipped:
        # Before 1.6 torch wrote a stream of pickles, which is only checked by reading it.
        if start.startswith(pickle.PROTO):
            return
        reason = "its end is missing" if start.startswith(b"PK") else f"it begins with {start!r}"
        raise damaged(path, reason if start else "0 bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
            # torch takes such an entry for a folder, and whatever is in memory for its numbers.
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & 0x10 and entry.file_size]
    except Exception as error:  # unknown compression, a password, names that are no text: zipfile raises many types
        raise damaged(path, str(error) or type(error).__name__) from error
    if part is not None:
        raise damaged(path, f"wrong checksum of {part}")
    if folders:
        raise damaged(path, f"{folders[0]} is marked as a folder")


def check_state(state: Any, source: str) -> None:
    """Raises UserError unless `state` is a state dict of ordinary tensors, each of them as large as it says."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{source} holds no weights by name: name a checkpoint file.")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise UserError(f"{source} holds {name!r:.80}, which is not an ordinary tensor: name another file.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # repeats its few numbers
            raise UserError(f"{source} holds {name!r:.80} without all of its numbers: copy the file again.")


def unpickle(path: Path, mmap: bool = False) -> Any:
    """torch.load without running anything; mmap reads tensors when they are first used.

    Raises:
        DamagedCheckpointError: anything that cannot be read. UserError: a file that asks for code to be run.
    """
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if forbidden := re.search(r"GLOBAL ([\w.]+)|(?:reduce for unrecognized function|but got) (.+)", str(error)):
            name = forbidden[1] or forbidden[2]
            raise UserError(
                f"{path} asks for {name} to be run when it is read, which no checkpoint needs, and was refused: "
                "use a file that holds only tensors and options."
            ) from error
        raise damaged(path, "its list of contents is cut short or of an unknown form") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and what `models.weights.convert` stored beside them."""
    try:
        from safetensors import SafetensorError

        from utils.tensor_file import read_tensors
    except ImportError as error:
        raise UserError(f"{path} needs the package safetensors: pip install safetensors.") from error
    try:
        return read_tensors(path)
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, f"{error!s:.200}") from error


def save_checkpoint(obj: Mapping[str, Any], path: PathLike) -> None:
    """Writes a checkpoint so that `path` always holds a whole one, the old or the new, whenever the program dies.

    Raises UserError when the disk is full or the folder is missing.
    """
    try:
        with atomic_write(path) as file:
            torch.save(obj, file)
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # torch reports a consequence instead
        if not isinstance(reason, OSError):
            raise
        raise UserError(
            f"{path} could not be written ({reason.strerror}); the existing file is unchanged: "
            "make room or choose another folder."
        ) from error


def previous_checkpoint(path: PathLike) -> Path | None:
    """The most trained undamaged training checkpoint beside a damaged one (`checkpoint*.pt`), or None."""
    path = Path(path)
    found = []
    for other in path.parent.glob("checkpoint*.pt"):
        if other.name != path.name:
            with suppress(UserError, KeyError, TypeError, IndexError):
                updates = unpickle(other, mmap=True)["optimizer_history"][-1]["num_updates"]
                found.append((updates, other.stat().st_mtime, other))
    for _, _, other in sorted(found, reverse=True):
        with suppress(DamagedCheckpointError):
            check_whole(other)
            return other
    return None


def load_model(
    path: PathLike,
    overrides: Mapping[str, Any] | None = None,
    ema: bool = False,
    device: str | torch.device = "cpu",
) -> "OFA":
    """`models.weights.load_model`, under the name that other programs import."""
    from models.weights import load_model

    return load_model(path, overrides, ema, device)
