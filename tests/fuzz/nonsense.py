"""Well-formed nonsense: files whose syntax is right and whose content is not, one odd value at a time.

    python -m tests.fuzz.nonsense [--seconds 600 --seed 0]

Every file must load or be refused with a `UserError` of one sentence; anything else is a fault.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from models.ofa import OFA, OFAConfig
from models.predictor import describe
from models.vqgan import VQGAN, VQGANConfig
from models.weights import load_model
from models.weights.card import KEY
from models.weights.convert import convert
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.hf_layout import to_config, to_layout_names
from utils.tensor_file import HEADER, write_tensors

ODD: list[Any] = [
    None, True, False, 0, -1, 3, 10**30, 2.5, float("nan"), "", "x", "1", "\ud800", [], [1], ["x"], [[]], {}, {"x": 1},
    {"": None},
]  # fmt: skip
GONE = object()
TRUNK = "embed_images"  # most entries are its, and alike
KINDS = ("checkpoint", "state dict", "config.json", "header", "model.yaml", "VQGAN weights")
SIDES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in dict(embed_dim=32, ffn_embed_dim=32, layers=1, attention_heads=4).items()
}


def small_model() -> OFA:
    """A model of 4 million numbers, most of them its image trunk's."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, token_bucket_size=4, image_bucket_size=4, code_image_size=32)
    return OFA(OFAConfig.from_arch("ofa_demo", **SIDES, **sizes, max_source_positions=16, max_target_positions=16))


def places(content: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested dicts and lists, the whole first."""
    yield prefix
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from places(content[key], (*prefix, key))


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place, or without it (`GONE`); tensors are shared."""
    if not place:
        return None if value is GONE else value
    parts = content.copy()
    if len(place) == 1 and value is GONE:
        del parts[place[0]]
    else:
        parts[place[0]] = changed(content[place[0]], place[1:], value)
    return parts


class Nonsense:
    """Files with one odd value each.

    Args:
        folder: where they are written. seed: of the choice.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.model = small_model()
        card = {
            "format": 1, "task": "caption", "prompts": {"caption": " what?"}, "candidates": None,
            "vocabulary": {"digest": "0", "size": 50, "bpe": "gpt2", "code_dict_size": 9, "num_bins": 9},
            "picture": {"side": 32, "mean": [0.5] * 3, "std": [0.5] * 3}, "decoding": {"beam": 5}, "options": {},
        }  # fmt: skip
        task = {"_name": "caption", "patch_image_size": 32, "bpe_dir": "x", "eval_args": '{"beam": 5}'}
        self.checkpoint = {
            "args": None, "cfg": {"model": {**asdict(self.model.config), "_name": "ofa_demo"}, "task": task}, KEY: card,
            "model": self.model.state_dict(), "extra_state": {"ema": self.model.state_dict(), "train_iterator": {}},
            "optimizer_history": [{"num_updates": 3}],
        }  # fmt: skip
        (folder / "OFA").mkdir()
        self.config = to_config(asdict(self.model.config), asdict(OFAConfig()))
        write_tensors(folder / "OFA" / "model.safetensors", to_layout_names(self.model.state_dict()), {})
        small = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), resolution=8, z_channels=8)
        self.vqgan = VQGAN(VQGANConfig(**small, embed_dim=4, n_embed=8))  # type: ignore[arg-type]
        self.vqgan.save(folder / "last.ckpt", folder / "model.yaml")
        self.yaml = yaml.safe_load((folder / "model.yaml").read_text())

    def cases(self) -> dict[str, tuple[Any, Callable[[Any], None]]]:
        """Kind -> content to change, function that writes and reads it."""
        options = {key: value for key, value in self.checkpoint.items() if key not in ("model", "extra_state")}
        state = {name: value for name, value in self.checkpoint["model"].items() if TRUNK not in name}
        return {
            "checkpoint": (options, self.read_options),
            "state dict": (state, self.read_state),
            "config.json": (self.config, self.read_config),
            "header": (options, self.read_header),
            "model.yaml": (self.yaml, self.read_yaml),
            "VQGAN weights": (self.vqgan.state_dict(), self.read_vqgan),
        }

    def read_options(self, content: Any) -> None:
        if isinstance(content, dict):
            content = {**self.checkpoint, **content}
        self._read_checkpoint(content)

    def read_state(self, content: Any) -> None:
        if isinstance(content, dict):
            content = {**{name: t for name, t in self.checkpoint["model"].items() if TRUNK in name}, **content}
        self._read_checkpoint({**self.checkpoint, "model": content})

    def _read_checkpoint(self, content: Any) -> None:
        path = self.folder / "c.pt"
        save_checkpoint(content, path)
        self._use(path)

    def _use(self, path: Path) -> None:
        """What the predictor, restarts and the converter do with a checkpoint."""
        description = describe(load_checkpoint(path, mmap=True), str(path))
        description.decoding("caption", {})
        load_model(path)
        convert(path, self.folder / "out.safetensors")

    def read_config(self, content: Any) -> None:
        (self.folder / "OFA" / "config.json").write_text(json.dumps(content))
        self._use(self.folder / "OFA")

    def read_header(self, content: Any) -> None:
        path = self.folder / "c.safetensors"
        state = {name: tensor.clone() for name, tensor in self.checkpoint["model"].items()}
        save_file(state, path, metadata={HEADER: json.dumps(content)})
        self._use(path)

    def read_yaml(self, content: Any) -> None:
        (self.folder / "odd.yaml").write_text(yaml.safe_dump(content))
        VQGAN.load(self.folder / "last.ckpt", self.folder / "odd.yaml")

    def read_vqgan(self, content: Any) -> None:
        torch.save({"state_dict": content}, self.folder / "odd.ckpt")
        VQGAN.load(self.folder / "odd.ckpt", self.folder / "model.yaml")

    def run(self, kind: str, place: tuple[Any, ...], value: Any) -> str | None:
        """What went wrong with one odd value; None where it loads or is refused in a sentence."""
        content, read = self.cases()[kind]
        try:
            read(changed(content, place, value))
        except UserError as error:
            if "\n" in str(error) or len(str(error)) > 1000:
                return f"{kind} {place} = {value!r:.60}: {str(error)!r:.300}"
        except UnicodeEncodeError as error:
            if "surrogates" not in str(error):  # such a text cannot be written in this form
                raise
        except Exception as error:
            return f"{kind} {place} = {value!r:.60}: {type(error).__name__}: {error!s:.200}"
        return None

    def draw(self, kind: str | None = None) -> tuple[str, tuple[Any, ...], Any]:
        """A kind, a place in its content and an odd value for it."""
        cases = self.cases()
        kind = kind or self.rng.choice(list(cases))
        content = cases[kind][0]
        place = self.rng.choice(list(places(content)))
        odd = [*ODD, GONE]
        if kind in ("state dict", "VQGAN weights"):
            odd += [torch.zeros(()), torch.zeros(0), torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64)]
            odd += [torch.zeros(1).expand(10**6, 10**6), torch.zeros(4, 4).to_sparse(), torch.zeros(2, 2, 2, 2)]
        return kind, place, self.rng.choice(odd)


def main() -> int:
    """Long run; prints what went wrong and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--verbose", action="store_true", help="print each case before it is tried")
    args = parser.parse_args()
    tried, faults = 0, []
    with tempfile.TemporaryDirectory() as folder:
        nonsense, end = Nonsense(Path(folder), args.seed), time.monotonic() + args.seconds
        while time.monotonic() < end:
            tried += 1
            case = nonsense.draw(args.kind)
            if args.verbose:
                print(*case[:2], repr(case[2])[:60], file=sys.stderr, flush=True)
            if fault := nonsense.run(*case):
                faults.append(fault)
                print(fault, flush=True)
    print(f"{tried} files of well-formed nonsense, {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
