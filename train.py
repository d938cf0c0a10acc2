"""Trains: `python train.py train.tsv,val.tsv --task=caption --arch=ofa_base ...` (run_scripts/ holds whole recipes).

Loads the plugin, parses the flags and hands over to the training engine (`ofa_module/engine`).
"""

import ofa_module  # isort: skip  # noqa: F401  (before fairseq, whose import it quiets)

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Optional

from fairseq import options
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from omegaconf import DictConfig, open_dict

from ofa_module import cli
from ofa_module.continuing import last_checkpoint
from ofa_module.engine.flags import check_flags, repeatable
from ofa_module.engine.loop import train
from ofa_module.run_file import put_under_name, written
from utils.errors import UserError, one_sentence


@dataclass
class TrainingFlags(FairseqDataclass):
    """Flags that only training has."""

    config: Optional[str] = field(
        default=None,
        metadata={
            "help": "YAML file of flags, one `name: value` per line; the command line overrides it. Each run saves its "
            "flags as config.yaml in its save folder"
        },
    )
    run_name: Optional[str] = field(
        default=None,
        metadata={
            "help": "name of the run, and of the folders for its files in --save-dir, in --tensorboard-logdir and next "
            "to --log-file"
        },
    )
    max_nonfinite_updates: int = field(
        default=10,
        metadata={
            "help": "stop after this many updates in a row whose loss or gradient is not finite (they are skipped)"
        },
    )
    plan: bool = field(
        default=False, metadata={"help": "print the memory that an update needs and exit without reading data"}
    )
    auto_batch: bool = field(
        default=False,
        metadata={"help": "lower --batch-size until an update fits into memory; --update-freq keeps its rows"},
    )
    compile: bool = field(
        default=False,
        metadata={"help": "compile the encoder's and decoder's layers (torch.compile); the first updates take longer"},
    )
    verbose: bool = field(
        default=False,
        metadata={"help": "log the whole configuration, the model and all figures of each line"},
    )
    use_ema_weights_to_init_param: bool = field(
        default=False,
        metadata={"help": "start from the averaged weights of the restored checkpoint, if it has any"},
    )
    use_latest_weights_to_init_ema: bool = field(
        default=False,
        metadata={"help": "with --store-ema: the average starts from the checkpoint's last weights, not its average"},
    )


def _parser() -> argparse.ArgumentParser:
    parser = options.get_training_parser()
    gen_parser_from_dataclass(parser.add_argument_group("training"), TrainingFlags())
    return parser


def parse_args(argv: Sequence[str]) -> DictConfig:
    """Configuration of a training command line, its own flags under `training`; SystemExit on a bad flag."""
    cfg, flags = cli.parse(_parser, argv)
    with open_dict(cfg):
        cfg.training = {f.name: getattr(flags, f.name) for f in fields(TrainingFlags) if f.name != "_name"}
    check_flags(_parser(), cfg, flags)
    with open_dict(cfg):
        cfg.training.written = written(repeatable(cfg, flags), flags.given)
    try:
        put_under_name(cfg)
    except UserError as error:
        _parser().error(one_sentence(error))
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the command line says."""
    cfg = parse_args(sys.argv[1:] if argv is None else argv)
    if cfg.training.plan:
        from ofa_module.engine.plan import print_plan  # imports much that training does not need

        cli.run(print_plan, cfg, alone=True)
    else:
        cli.run(train, cfg, last_checkpoint)


if __name__ == "__main__":
    main()
