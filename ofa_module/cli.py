"""Command lines of train.py and evaluate.py: fairseq's parsers, checked early, with one-sentence errors."""

import argparse
import ast
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq import options
from fairseq import utils as fairseq_utils
from fairseq.distributed import utils as distributed_utils
from omegaconf import DictConfig, open_dict

from ofa_module import run_file
from ofa_module.configuration import configuration
from utils.errors import SYSTEM_ADVICE, UserError, one_sentence
from utils.logs import program_logging
from utils.options import LARGEST_SEED
from utils.program import Interruption, exit_code, sigterm_interrupts

logger = logging.getLogger(__name__)
PLUGIN = Path(__file__).resolve().parent


def parse(
    parser_of: Callable[[], argparse.ArgumentParser], argv: Sequence[str]
) -> tuple[DictConfig, argparse.Namespace]:
    """Configuration of a command line, and its plain flags.

    Among these are `given`, the names that stand on the line or in its --config file, and `values`, what the parser
    made of each, before architectures and other flags fill in theirs.

    Args:
        parser_of: makes fairseq's parser.

    Raises SystemExit with one sentence for a bad flag.
    """
    fairseq_utils.import_user_module.memo = {str(PLUGIN)}  # it is imported: this module is part of it
    parser = parser_of()
    try:
        if "--config" in parser._option_string_actions and (path := run_file.named_file(argv)) is not None:
            argv = _with_file(parser_of, argv, path)
        args = _with_plugin(argv)
        for action in parser._actions:  # argparse puts the name of a type into its message
            if getattr(action.type, "__name__", "") == "<lambda>":
                action.type.__name__ = "list of numbers"  # type: ignore[union-attr]
        if {"--fp16", "--bf16"} <= set(args):
            raise UserError("--fp16 and --bf16 cannot be combined: leave one out.")  # fairseq speaks of TPUs
        flags = options.parse_args_and_arch(parser, input_args=args)
        # fairseq takes bfloat16 to mean a TPU on the command line.
        flags.tpu = "--tpu" in args
        flags.given = _given(parser, args)
        flags.values = vars(parser.parse_args(args))
        if not 0 <= flags.seed <= LARGEST_SEED:
            raise UserError(f"--seed {flags.seed}: choose a number from 0 to {LARGEST_SEED}.")
        cfg = configuration(flags)
        least = {"num_workers": 0, "batch_size": 1, "batch_size_valid": 1, "log_interval": 1, "update_freq": 1}
        least |= {"max_epoch": 0, "max_update": 0}
        values = {**cfg.dataset, **cfg.optimization, "log_interval": cfg.common.log_interval}
        values |= {"update_freq": min(cfg.optimization.update_freq, default=1)}
        for name, lowest in least.items():
            if values[name] is not None and values[name] < lowest:
                raise UserError(f"--{name.replace('_', '-')} {values[name]}: choose a number of at least {lowest}.")
        _prepare_processes(cfg)
    except (UserError, ValueError, AssertionError) as error:
        parser.error(one_sentence(error))
    except RuntimeError as error:
        if error.args:
            raise
        parser.error("--arch is missing: name the model's size, such as --arch=ofa_base.")  # fairseq says nothing
    return cfg, flags


def _with_file(parser_of: Callable[[], argparse.ArgumentParser], argv: Sequence[str], path: str) -> list[str]:
    """A command line with the flags of a --config file in front, unless it says otherwise."""
    settings = run_file.read_run_file(path)
    plugin = settings.values.get("user_dir")
    words = _with_plugin([*([] if plugin is None else [f"--user-dir={plugin.value}"]), *argv])
    fairseq_utils.import_user_module(argparse.Namespace(user_dir=words[-1].removeprefix("--user-dir=")))
    parser = parser_of()
    # What the file chooses (task, architecture, plugin ...) brings further flags into the parser.
    plain = run_file.without_switches(argv)
    chosen = settings.words(parser, _given(parser, plain), known_only=True)
    first = _with_plugin([*chosen, *plain])
    options.parse_args_and_arch(parser, first, parse_known=True, modify_parser=run_file.make_optional)
    # Flags of a task, loss or optimizer of the file that the command line replaces mean nothing.
    own = parser_of()
    exclusive = set(_given(parser, plain)) & run_file.EXCLUSIVE.keys()
    file_wins = _with_plugin([*plain, *settings.words(own, exclusive, known_only=True), *words[-1:]])
    options.parse_args_and_arch(own, file_wins, parse_known=True, modify_parser=run_file.make_optional)
    settings = settings.chosen_by(parser, own)
    line, switches = run_file.switched(parser, argv)
    return [*settings.words(parser, {*_given(parser, line), *switches}), *line]


def _given(parser: argparse.ArgumentParser, args: Sequence[str]) -> list[str]:
    """Names of the options that stand on a command line, sorted, which the parser has taken already."""
    absent = object()
    found, _ = parser.parse_known_args(args, argparse.Namespace(**{a.dest: absent for a in parser._actions}))
    return sorted(name for name, value in vars(found).items() if value is not absent and value is not None)


def _with_plugin(argv: Sequence[str]) -> list[str]:
    """The flags with --user-dir naming a folder that is there, else this plugin, and old launchers' rank flag."""
    args = [arg.replace("--local-rank", "--local_rank", 1) for arg in argv]
    kept: list[str] = []
    folder = None
    for arg in args:
        if kept and kept[-1] == "--user-dir" and not arg.startswith("--"):
            kept.pop()
            folder = arg
        elif arg.startswith("--user-dir="):
            folder = arg.removeprefix("--user-dir=")
        else:
            kept.append(arg)
    return [*kept, f"--user-dir={PLUGIN if folder is None else _user_dir(folder)}"]


def _user_dir(path: str) -> str:
    """What --user-dir means: a folder that is there, else this one, which scripts name relative to their own."""
    if os.path.isfile(path):
        raise UserError(f"--user-dir={path} is a file: name the folder of a plugin, or leave it out.")
    if path and os.path.exists(path) and not os.path.samefile(path, PLUGIN):
        return path
    if not os.path.exists(path) and os.path.basename(os.path.normpath(path)) != PLUGIN.name:
        logger.warning("--user-dir %s does not exist: using this repository's %s.", path, PLUGIN)
    return str(PLUGIN)


def _prepare_processes(cfg: DictConfig) -> None:
    """torchrun's variables -> fairseq's settings; without a GPU, processes talk through gloo."""
    distributed = cfg.distributed_training
    with open_dict(cfg):
        if not torch.cuda.is_available():
            cfg.common.cpu = True
            distributed.distributed_backend = "gloo"
            distributed.ddp_backend = "legacy_ddp"  # parameters without a gradient need no flag
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ:
            distributed.distributed_init_method = "env://"
            distributed.distributed_world_size = int(os.environ["WORLD_SIZE"])
            distributed.distributed_rank = int(os.environ["RANK"])
            distributed.device_id = int(os.environ.get("LOCAL_RANK", distributed.device_id))
            distributed.distributed_no_spawn = True
        elif cfg.common.cpu:
            if distributed.distributed_world_size > 1 and not torch.cuda.is_available():
                logger.warning(
                    "--distributed-world-size=%d without a GPU: training in one process; start several with torchrun.",
                    distributed.distributed_world_size,
                )
            distributed.distributed_world_size = 1


def on_gpu(cfg: DictConfig) -> bool:
    """Whether a configuration is computed on a GPU."""
    return torch.cuda.is_available() and not cfg.common.cpu


def full_precision_on_cpu(cfg: DictConfig) -> None:
    """Turns --fp16 off without a GPU, with a warning: neither fairseq nor PyTorch computes all of it on the CPU."""
    if cfg.common.cpu and cfg.common.fp16:
        logger.warning("--fp16 needs a GPU: continuing in float32 (--bf16 is half precision on the CPU).")
        cfg.common.fp16 = cfg.common.memory_efficient_fp16 = False


def literal_dict(text: str, flag: str) -> dict[str, Any]:
    """Python dictionary written as a flag's value; nothing in it is executed. UserError if it is none."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(f"{flag} is not a Python dictionary ({one_sentence(error)}): {text}") from error
    if not isinstance(value, dict):
        raise UserError(f"{flag} must be a Python dictionary such as {{'beam': 5}}, got: {text}")
    for part in ast.walk(ast.parse(text.strip(), mode="eval")):
        keys = [key.value for key in part.keys if isinstance(key, ast.Constant)] if isinstance(part, ast.Dict) else []
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UserError(f"{flag} names {twice[0]!r} twice: remove one.")
    return value


def run(
    program: Callable[[DictConfig], None],
    cfg: DictConfig,
    interrupted: Callable[[DictConfig], str] | None = None,
    alone: bool = False,
) -> None:
    """Runs a program on this process, or on one process per GPU; user errors end it with one sentence and code 2.

    `alone` runs it on this process whatever the flags say, and leaves their precision as it is.

    Ctrl-C (SIGINT) ends it with code 130, one line, and what `interrupted` says; so does SIGTERM, with 143, where
    there is one process: one of several may wait for another, and Python handles signals after that.
    Log lines go to stdout and to --log-file while it runs; afterward the caller's logging is what it was.
    """
    log_file, cfg.common.log_file = cfg.common.log_file, None  # fairseq would log only a part of it there
    logged_program = partial(_logged, program, log_file, os.getpid())
    first = int(os.environ.get("RANK", "0")) == 0
    name, stop = Path(sys.argv[0]).name, Interruption()
    try:
        alone_here = cfg.distributed_training.distributed_world_size == 1
        ends = sigterm_interrupts() if alone_here else nullcontext()
        with warnings.catch_warnings(), program_logging(log_file if first else None), stop, ends:
            _filter_warnings()
            if alone:
                program(cfg)
            else:
                full_precision_on_cpu(cfg)
                distributed_utils.call_main(cfg, logged_program)
    except BaseException as error:
        # Another process may leave first, which this one sees as a broken connection.
        stopped = stop.asked or isinstance(error, KeyboardInterrupt)
        system = not stopped and isinstance(error, OSError) and error.errno in SYSTEM_ADVICE
        if system or isinstance(error, UserError):
            print(f"{name}: error: {one_sentence(error)}", file=sys.stderr)
            raise SystemExit(2) from error
        if not stopped:
            raise
        if first:
            print(f"{name}: interrupted. {interrupted(cfg) if interrupted else ''}".strip(), file=sys.stderr)
        raise SystemExit(exit_code(error) if isinstance(error, KeyboardInterrupt) else 128 + signal.SIGINT) from None


def _filter_warnings() -> None:
    """Leaves out what libraries warn of and no user can change."""
    warnings.filterwarnings("ignore", message=".*pin_memory.*no accelerator")
    # Of convolutions of one pixel, whose two ways to count strides name the same memory.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


def _logged(program: Callable[[DictConfig], None], log_file: str | None, logging_process: int, cfg: DictConfig) -> None:
    """The program; with its own logging in a process that fairseq started for a GPU, which inherits none."""
    if os.getpid() == logging_process:
        program(cfg)
        return
    master = distributed_utils.is_master(cfg.distributed_training)
    with warnings.catch_warnings(), program_logging(log_file if master else None):
        _filter_warnings()
        if not master:
            logging.getLogger().setLevel(logging.WARNING)  # as fairseq does
        program(cfg)
