"""The command `ofa`, which `pip install -e .` installs: every program of the repository, from any folder."""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# Command -> (module, whose `main()` reads sys.argv and returns the exit code; help).
PROGRAMS = {
    "train": ("train", "train or fine-tune a model"),
    "evaluate": ("evaluate", "answer every row of a data file and score the answers"),
    "predict": ("predict", "run a model on your own images and texts"),
    "demo": ("demo", "try a model on a web page"),
    "serve": ("serve", "answer other programs over HTTP"),
    "validate": ("data.validate", "check every row of a data file"),
    "convert": ("utils.convert", "convert a checkpoint from one file format to another"),
    "export": ("models.export.__main__", "write a model as ONNX files and torch.export programs"),
    "build": ("data.build", "build data files from published datasets"),
    "image-codes": ("utils.image_codes", "turn images into codes, and codes into images"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program that the command line names; its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not (ROOT / "pyproject.toml").exists():
        print(f"ofa: error: {ROOT} is not a clone of OFA: run `pip install -e .` in one.", file=sys.stderr)
        return 2
    if not args or args[0] not in PROGRAMS:
        _parser().parse_args(args[:1])
    command, *sys.argv[1:] = args
    sys.argv[0] = f"ofa {command}"
    sys.path.insert(0, str(ROOT))  # before packages of the same names in the user's folder
    try:
        import_module("ofa_names")
    except ImportError as error:
        print(f"ofa: error: {error}", file=sys.stderr)
        return 2
    code: int | None = import_module(PROGRAMS[command][0]).main()
    return code or 0


def _parser() -> argparse.ArgumentParser:
    """The parser for a line without a command: it prints help or an error and exits."""
    lines = [f"  {command:<12} {text}" for command, (_, text) in PROGRAMS.items()]
    parser = argparse.ArgumentParser(
        "ofa",
        usage="ofa [-h] [--version] COMMAND ...",
        description="One sequence-to-sequence model for images and text.",
        epilog="\n".join(["commands:", *lines, "", "`ofa COMMAND --help` lists the flags of a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_bytes().decode())["project"]
    parser.add_argument("--version", action="version", version=f"ofa {project['version']}")
    parser.add_argument("command", metavar="COMMAND", choices=PROGRAMS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
