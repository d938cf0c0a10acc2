"""Checkpoints that were cut short or altered: each must be refused with a `UserError`, or load unchanged.

    python -m tests.fuzz.damage [--count 200 --seed 0]

Files of torch's old format have no checksums, so an altered number in one cannot be noticed: those are counted apart.
"""

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metrics.fid import _read_weights as read_inception
from models.clip import _read_weights
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.hf_layout import write_json
from utils.lightning import load_lightning_weights
from utils.tensor_file import write_tensors

State = dict[str, Tensor]
NO_CHECKSUM = "old format"


class Net(nn.Module):
    """A few tensors in modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 30), nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def _model(path: Path) -> State:
    return load_checkpoint(path)["model"]


def _mapped(path: Path) -> State:
    return load_checkpoint(path, mmap=True)["model"]


def _folder(path: Path) -> State:
    return load_checkpoint(path.parent)["model"]


def _inception(path: Path) -> State:
    return read_inception(path, Net())


FORMATS: dict[str, tuple[str, Callable[[Path], State]]] = {
    "training file": ("c.pt", _model),
    "training file, mapped": ("c.pt", _mapped),
    NO_CHECKSUM: ("c.pt", _model),
    "safetensors": ("c.safetensors", _model),
    "folder": ("model.safetensors", _folder),
    "folder, pickled": ("pytorch_model.bin", _folder),
    "VQGAN": ("last.ckpt", load_lightning_weights),
    "CLIP archive": ("ViT.pt", _read_weights),
    "CLIP state dict": ("ViT.pt", _read_weights),
    "Inception": ("inception.pth", _inception),
}


def write(kind: str, path: Path) -> None:
    """A whole file of a kind."""
    torch.manual_seed(0)
    net = Net()
    state = net.state_dict()
    if kind.startswith("folder"):
        write_json(path.parent / "config.json", {"model_type": "ofa"})
    if kind.startswith("training"):
        save_checkpoint({"model": state, "extra_state": {"best": 1}, "cfg": {"task": {"data": "x" * 300}}}, path)
    elif kind == NO_CHECKSUM:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    elif kind in ("safetensors", "folder"):
        write_tensors(path, state, {"cfg": {"task": {"data": "x" * 300}}})
    elif kind == "VQGAN":
        save_checkpoint({"state_dict": state}, path)
    elif kind == "CLIP archive":
        torch.jit.script(net).save(path)
    else:
        torch.save(dict(state), path)


def cut(whole: bytes, rng: random.Random) -> bytes:
    """The file without its end."""
    return whole[: rng.choice([rng.randrange(len(whole)), len(whole) - 1 - rng.randrange(min(64, len(whole)))])]


def alter(whole: bytes, rng: random.Random) -> bytes:
    """The file with one flipped bit, overwritten, zeroed, missing, doubled or exchanged stretch."""
    data = bytearray(whole)
    # The ends of a file, where its lists of contents are, are as interesting as all the rest.
    edge = rng.choice([len(data), 600])
    start = rng.choice([rng.randrange(min(edge, len(data))), len(data) - 1 - rng.randrange(min(edge, len(data)))])
    stop = min(len(data), start + rng.choice([1, 2, 4, 8, 64, 512]))
    other = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            data[start] ^= 1 << rng.randrange(8)
        case 1:
            data[start:stop] = rng.randbytes(stop - start)
        case 2:
            data[start:stop] = bytes(stop - start)
        case 3:
            del data[start:stop]
        case 4:
            data[start:start] = data[start:stop]
        case 5:
            data[start:stop], data[other : other + stop - start] = data[other : other + stop - start], data[start:stop]
    return bytes(data)


def outcome(path: Path, load: Callable[[Path], State], whole: State) -> str:
    """refused, unchanged, silent, or the name of an error that no user should see."""
    try:
        found = load(path)
    except UserError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.100}"
    same = found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    return "unchanged" if same else "silent"


def run(kind: str, count: int, seed: int, folder: Path) -> Counter[str]:
    """Outcomes of `count` truncated and `count` altered files of a kind; "silent" and errors are faults."""
    name, load = FORMATS[kind]
    folder.mkdir(exist_ok=True)
    path, rng = folder / name, random.Random(f"{kind} {seed}")
    write(kind, path)
    content, whole = path.read_bytes(), {name: tensor.clone() for name, tensor in load(path).items()}
    found: Counter[str] = Counter()
    for change in (cut, alter):
        for _ in range(count):
            damaged = change(content, rng)
            path.unlink()  # what is mapped stays as it was
            path.write_bytes(damaged)
            result = outcome(path, load, whole)
            if result == "silent" and kind == NO_CHECKSUM and change is alter:
                result = "cannot be noticed"
            found["unchanged" if damaged == content else result] += 1
    return found


def faults(found: Counter[str]) -> list[str]:
    """What must not happen."""
    return sorted(found.keys() - {"refused", "unchanged", "cannot be noticed"})


def main() -> int:
    """Long run; prints the outcomes of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    wrong: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, kind in enumerate(FORMATS):
            found = run(kind, args.count, args.seed, Path(folder) / str(number))
            wrong += faults(found)
            print(f"{kind}: {dict(found)}", flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
