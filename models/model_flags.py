"""Flags that say how a program loads a model to answer with, and the loading."""

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.options import positive, setting

if TYPE_CHECKING:  # torch is imported when the command line is known to be right
    from models.predictor import OFAPredictor

KEYWORDS = {
    "names=[...]": "--candidates FILE",
    "candidates=[...]": "--candidates FILE",
    "vqgan=(checkpoint, yaml)": "--vqgan CHECKPOINT YAML",
    "max_image_pixels=...": "--max-image-pixels",
    "as --bpe-dir": "with --set bpe_dir=...",
    "dtype='": "--dtype '",
    "device='": "--device '",
}  # of the predictor's methods -> predict.py's flags
# Flags of the names of `OFAPredictor.load`'s arguments.
PASSED_ON = ("dtype", "batch_size", "compile", "int8", "cuda_graphs")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `load_predictor` reads, but those of the checkpoint, candidates, VQGAN and batch size."""
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default %(default)s)")
    parser.add_argument(
        "--int8", action="store_true", help="int8 weights in the layers, which take a quarter of the memory"
    )
    parser.add_argument("--compile", action="store_true", help="compile the layers; the first batches take longer")
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="on a GPU, replay steps of generation as CUDA graphs"
    )
    parser.add_argument(
        "--set", action="append", default=[], type=setting, metavar="NAME=VALUE", dest="overrides",
        help="override an option of the checkpoint, e.g. bpe_dir=utils/BPE",
    )  # fmt: skip


def add_pixel_flag(parser: argparse.ArgumentParser, refused: str, default: int | None = None) -> None:
    """Adds --max-image-pixels; `refused`: what happens to larger images."""
    shown = "2 ** 28" if default is None else "%(default)s"
    parser.add_argument(
        "--max-image-pixels", type=positive, default=default, help=f"larger images are {refused} (default: {shown})"
    )


@contextmanager
def advice_for_shell() -> Iterator[None]:
    """Messages of the predictor inside name its keywords; they leave with flags in their places."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for keyword, flag in KEYWORDS.items():
            message = message.replace(keyword, flag)
        raise UserError(re.sub(r"(?<!--set )\b([a-z]\w+)=\.\.\.", r"--set \1=...", message)) from error


def load_predictor(args: argparse.Namespace) -> "OFAPredictor":
    """The predictor that a command line asks for; UserError as of `OFAPredictor.load`."""
    overrides = dict(args.overrides)
    if reserved := overrides.keys() & {"device", "vqgan", "max_image_pixels", *PASSED_ON}:
        name = sorted(reserved)[0]
        raise UserError(f"--set {name}=... has its own flag: pass --{name.replace('_', '-')}.")
    if args.max_image_pixels:
        overrides["max_image_pixels"] = args.max_image_pixels
    if getattr(args, "candidates", None):
        overrides["ans2label_file"] = args.candidates
    if getattr(args, "vqgan", None):
        overrides["vqgan"] = tuple(args.vqgan)
    from models.predictor import OFAPredictor

    own = {name: getattr(args, name) for name in PASSED_ON}
    with advice_for_shell():
        return OFAPredictor.load(args.checkpoint, args.device, **own, **overrides)
