"""`python -m models.export CHECKPOINT FOLDER`: see docs/export.md."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from models.export.folder import FORMATS, check_target, export
from models.export.onnx_files import check_packages
from models.predictor import OFAPredictor
from utils.errors import UserError
from utils.options import path_of, program_name, setting
from utils.program import program

# Options of `OFAPredictor.load` and of training that no program has, and why.
NOT_EXPORTED = {
    "sample_patch_num": "a program cannot draw patches",
    "dtype": "programs are float32",
    "int8": "programs are float32",
    "compile": "what runs a program compiles it",
    "device": "programs are made on the CPU",
    "batch_size": "programs take any",
    "vqgan": "it is another model",
}


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in formats if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown: choose among {', '.join(FORMATS)}")
    return formats


@program("python -m models.export")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        program_name("python -m models.export"),
        description="Write a model as ONNX files and torch.export programs, with all that they need beside them.",
    )
    parser.add_argument("checkpoint", type=path_of, metavar="CHECKPOINT", help="file or Hugging Face folder")
    parser.add_argument("folder", type=path_of, metavar="FOLDER", help="new, empty, or that of an earlier export")
    parser.add_argument("--format", type=_formats, default=FORMATS, help="onnx, torch or both (default: onnx,torch)")
    parser.add_argument(
        "--set", action="append", default=[], type=setting, metavar="NAME=VALUE", dest="overrides",
        help="override an option of the checkpoint, e.g. patch_image_size=384",
    )  # fmt: skip
    args = parser.parse_args(argv)
    check_target(args.folder)
    if "onnx" in args.format:
        check_packages()
    for name, value in export(_load(args.checkpoint, dict(args.overrides)), args.folder, args.format).items():
        print(f"{name}: differs from the model by at most {value:.1e}.")
    print(f"Wrote {args.folder}.")
    return 0


def _load(checkpoint: Any, overrides: dict[str, Any]) -> OFAPredictor:
    for name, reason in NOT_EXPORTED.items():
        if name in overrides:
            raise UserError(f"--set {name}=... cannot be exported ({reason}): leave it out.")
    return OFAPredictor.load(checkpoint, "cpu", **overrides)


if __name__ == "__main__":
    sys.exit(main())
