"""Trains: `python train.py train.tsv,val.tsv --task=caption --arch=ofa_base ...` (run_scripts/ holds whole recipes).

Loads the plugin, parses the flags and hands over to fairseq's training program.
"""

import ofa_module  # isort: skip  # noqa: F401  (before fairseq, whose import it quiets)

import sys
from collections.abc import Sequence

from fairseq import options
from omegaconf import DictConfig

from ofa_module import cli
from ofa_module.trainer import train


def parse_args(argv: Sequence[str]) -> DictConfig:
    """Configuration of a training command line; SystemExit with one sentence on a bad flag."""
    return cli.parse(options.get_training_parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the command line says."""
    cli.run(train, parse_args(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
