"""Files that ask for code to be run, for every reader: nothing is executed, nothing of the user's is overwritten.

    python -m tests.fuzz.hostile

Each pickle calls one of `CALLS`, alone or inside an otherwise good file; the canary beside it must stay as it is.
"""

import io
import os
import pickle
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.answers import AnswerConfig, read_answers
from data.tsv import TsvFile
from metrics.cider import CiderD
from metrics.fid import _read_weights, read_statistics
from models.clip import CLIP
from models.vqgan import VQGAN, VQGANConfig
from utils.checkpoint import load_checkpoint, previous_checkpoint
from utils.errors import UserError
from utils.hf_layout import write_json
from utils.record_file import RecordFile

CANARY = "canary"
# module, function, arguments as a pickle's opcodes; each would change the canary in the folder it runs in.
CALLS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "system": ("os", "system", ("echo x > canary",)),
    "posix": ("posix", "system", ("echo x > canary",)),
    "eval": ("builtins", "eval", ("open('canary', 'w')",)),
    "exec of Python 2": ("__builtin__", "exec", ("open('canary', 'w')",)),
    "open": ("builtins", "open", ("canary", "w")),
    "io.open": ("io", "open", ("canary", "wb")),
    "truncate": ("os", "truncate", ("canary", 0)),
    "remove": ("os", "remove", ("canary",)),
    "rmtree": ("shutil", "rmtree", (".",)),
    "numpy": ("numpy", "save", ("canary", 1)),
    "memmap": ("numpy", "memmap", ("canary", "u1", "w+", 0, (9,))),
    "torch.save": ("torch", "save", (1, "canary")),
    "torch.load": ("torch", "load", ("evil.bin",)),
    "torch.jit": ("torch.jit", "load", ("evil.bin",)),
    "storage of a file": ("torch", "UntypedStorage.from_file", ("canary", True, 9)),
    "getattr": ("builtins", "getattr", ("x", "format")),
    "partial": ("functools", "partial", (print,)),
    "path": ("pathlib", "Path.write_text", ("canary", "x")),
    "popen": ("subprocess", "Popen", (["rm", "canary"],)),
    "our own": ("utils.files", "atomic_write", ("canary",)),
}


class Call:
    """Pickles as a call of a function by name, importable or not."""

    def __init__(self, module: str, name: str, arguments: tuple[Any, ...]) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class _Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]  # the one in Python, which can be extended
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, Call):
            return super().save(obj, save_persistent_id)
        self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        super().save(obj.arguments)
        self.write(b"R")


def pickled(value: Any) -> bytes:
    """A pickle of protocol 2 in which each `Call` is one."""
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def archived(value: Any) -> bytes:
    """The same as torch's zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def script(value: Any) -> bytes:
    """The same as a TorchScript archive."""
    file = io.BytesIO(archived(value))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/constants.pkl", pickled(value))
        archive.writestr("archive/code/__torch__.py", "torch.save(1, 'canary')")
    return file.getvalue()


def _vqgan(path: Path) -> None:
    VQGAN.load(path, path.parent / "model.yaml")


def _vqgan_yaml(path: Path) -> None:
    VQGANConfig.from_yaml(path)


def _inception(path: Path) -> None:
    _read_weights(path, torch.nn.Linear(1, 1))  # a whole Inception takes a second


def _folder(path: Path) -> None:
    load_checkpoint(path.parent)


def _answers(path: Path) -> None:
    read_answers(AnswerConfig(ans2label_file=str(path)))


def _index(path: Path) -> None:
    TsvFile(str(path).removesuffix(".ofaidx"))[0]


# reader -> name of its file, what reads it
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "checkpoint": ("checkpoint_last.pt", load_checkpoint),
    "previous checkpoint": ("checkpoint1.pt", lambda path: previous_checkpoint(path.with_name("checkpoint_last.pt"))),
    "safetensors": ("c.safetensors", load_checkpoint),
    "Hugging Face folder": ("pytorch_model.bin", _folder),
    "config.json": ("config.json", _folder),
    "VQGAN": ("last.ckpt", _vqgan),
    "model.yaml": ("odd.yaml", _vqgan_yaml),
    "CLIP": ("ViT-B-16.pt", CLIP.load),
    "Inception": ("inception.pth", _inception),
    "statistics": ("stats.npz", read_statistics),
    "answers": ("ans2label.pkl", _answers),
    "document frequencies": ("df.p", CiderD.from_pickle),
    "index": ("x.tsv.ofaidx", _index),
    "output": ("out.jsonl", lambda path: RecordFile(path, "caption")),
}


def contents(call: Call) -> Iterator[bytes]:
    """Hostile files around a call, in every form that a reader could take for its own."""
    for value in (call, {"model": {}, "extra_state": call}, {"state_dict": {"x": call}}, [call], {call.name: call}):
        yield pickled(value)
        yield archived(value)
        yield script(value)
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mu.npy", array.getvalue() + pickled(call))
        archive.writestr("sigma.npy", array.getvalue() + pickled(call))
    yield file.getvalue()
    arguments = ", ".join(map(repr, call.arguments))
    yield f"model: !!python/object/apply:{call.module}.{call.name} [{arguments}]\n".encode()


def prepare(folder: Path) -> None:
    """What the readers need beside the file that lies."""
    (folder / CANARY).write_text("precious")
    (folder / "x.tsv").write_text("a\nb\n")
    (folder / "model.yaml").write_text(VQGANConfig().to_yaml())
    torch.save({"model": {}}, folder / "checkpoint_last.pt")
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    write_json(folder / "config.json", {"model_type": "ofa"})


def run(readers: dict[str, tuple[str, Callable[[Path], Any]]], calls: dict[str, Any]) -> tuple[Counter[str], list[str]]:
    """Outcomes of every file, and what went wrong."""
    found: Counter[str] = Counter()
    wrong: list[str] = []
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)  # where the calls would find the canary
        try:
            for reader, (file, read) in readers.items():
                prepare(folder)
                good = (folder / file).read_bytes() if (folder / file).exists() else None
                for call, parts in calls.items():
                    for number, content in enumerate(contents(Call(*parts))):
                        (folder / file).write_bytes(content)
                        result = "read"
                        try:
                            read(folder / file)
                        except UserError as error:
                            result = "refused" if "\n" not in str(error) else "several lines"
                        except Exception as error:
                            result = f"{type(error).__name__}: {error!s:.80}"
                        found[result] += 1
                        canary = folder / CANARY
                        harm = not canary.exists() or canary.read_text() != "precious"
                        if harm or result not in ("read", "refused"):
                            wrong.append(f"{reader}, {call}, form {number}: {'canary changed' if harm else result}")
                            prepare(folder)
                if good is not None:
                    (folder / file).write_bytes(good)
                else:
                    (folder / file).unlink(missing_ok=True)
        finally:
            os.chdir(before)
    return found, wrong


def main() -> int:
    """All readers and calls."""
    found, wrong = run(READERS, CALLS)
    print(*wrong, f"{found.total()} hostile files: {dict(found)}, {len(wrong)} faults", sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
