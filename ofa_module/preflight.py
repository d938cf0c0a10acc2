"""What would stop a run only at its first validation or its first save is checked before its first update."""

import logging
import os
import random
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.distributed.utils import is_master
from fairseq.logging import metrics
from omegaconf import DictConfig
from torch import Tensor

from data.base import OFADataset
from data.collate import without_skipped
from data.named_rows import URL
from data.validate_report import listed
from utils.distributed import sum_over_ranks
from utils.errors import UserError
from utils.files import lock

logger = logging.getLogger(__name__)
LAST = "checkpoint_last.pt"  # fairseq's default of --restore-file: of the save folder, where it need not exist
RANDOM = "none"  # --restore-file=none asks for random weights
LOCK = ".lock"
# Options of tasks that name files or folders to read.
FILES = (
    "bpe_dir", "ans2label_file", "eval_cider_cached_tokens", "text_data", "image_data", "detection_data",
    "image_gen_data", "neg_sample_dir", "vqgan_model_path", "vqgan_config_path", "clip_model_path",
)  # fmt: skip
MOMENTS = {"adam": 2, "adamax": 2, "nag": 1}  # tensors per parameter in an optimizer's state
CHECK_SECONDS = 10.0  # spent at most on the rows of a validation file, and as much on training's unknown words
WORD_ROWS = 1000  # training rows whose words are looked at


def check_start(cfg: DictConfig) -> None:
    """Raises UserError unless the checkpoint to start from is there; random weights must be asked for.

    `cfg` is fairseq's group `checkpoint`. Without --restore-file, and with --restore-file=none, a run starts from
    random weights unless its save folder holds a checkpoint to resume from.
    """
    if cfg.restore_file == RANDOM:
        cfg.restore_file = LAST
    given = {"--finetune-from-model": cfg.finetune_from_model}
    if cfg.restore_file != LAST:
        given["--restore-file"] = cfg.restore_file
        own = os.path.dirname(os.path.realpath(cfg.restore_file)) == os.path.realpath(cfg.save_dir)
        if os.path.isfile(os.path.join(cfg.save_dir, LAST)) and not own:
            logger.warning(
                "%s holds a run, whose checkpoints this one replaces: to resume it, leave out --restore-file and "
                "--reset-*.", cfg.save_dir
            )  # fmt: skip
    elif os.path.isfile(os.path.join(cfg.save_dir, LAST)):
        return  # the others are for a first start
    given["--continue-once"] = cfg.get("continue_once")
    for flag, path in given.items():
        if path is not None and not os.path.isfile(path):
            reason = "is a folder" if path and os.path.isdir(path) else "does not exist"
            advice = f"name a checkpoint file, or pass --restore-file={RANDOM} to start from random weights"
            raise UserError(f"{flag}={path} {reason}: {advice}.")
    resets = [name for name in ("optimizer", "lr_scheduler", "meters", "dataloader") if cfg[f"reset_{name}"]]
    if cfg.finetune_from_model is not None and (resets or cfg.restore_file != LAST):
        other = "--restore-file" if not resets else f"--reset-{resets[0].replace('_', '-')}"
        raise UserError(f"--finetune-from-model and {other} cannot be combined: leave one out.")


def check_files(cfg: DictConfig) -> None:
    """Raises UserError if more than one file that the run reads is missing: with all of them, before any is read.

    A single one is named by what reads it, which knows more about it.
    """
    task, given = cfg.task, cfg.checkpoint
    options = {name: task.get(name) for name in FILES if name in task}
    if not task.get("eval_cider"):
        options.pop("eval_cider_cached_tokens", None)
    paths = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value}
    paths |= {"--resnet-model-path": cfg.model.get("resnet_model_path")}
    if given.restore_file not in (LAST, RANDOM):
        paths["--restore-file"] = given.restore_file
    elif not os.path.isfile(os.path.join(given.save_dir, LAST)):
        paths["--finetune-from-model"] = given.finetune_from_model
    data = [path for path in dict.fromkeys((task.data or "").split(",")) if path and not URL.match(path)]
    missing = [f"{path} (data)" for path in data if not _is_there(path)]
    missing += [f"{path} ({flag})" for flag, path in paths.items() if path and not _is_there(path)]
    if len(missing) > 1:
        raise UserError(
            f"{len(missing)} files are missing: {', '.join(missing)}; correct the paths, or get the files as "
            "dataset/README.md and checkpoints/README.md say."
        )


def _is_there(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


@contextmanager
def locked_folder(cfg: DictConfig) -> Iterator[None]:
    """Keeps the save folder for this run, on its first process; UserError if it is another's or cannot be written."""
    if not is_master(cfg.distributed_training):
        yield
        return
    folder = Path(cfg.checkpoint.save_dir)
    for flag, path in (("--save-dir", folder), ("--tensorboard-logdir", cfg.common.tensorboard_logdir)):
        if path:
            _check_writable(flag, Path(path))
    if cfg.checkpoint.no_save:
        yield
        return
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        file.seek(0)
        if not lock(file):
            raise UserError(
                f"{folder} is the save folder of another run ({file.read().strip() or 'which is starting'}): "
                "wait until it ends, or choose another --save-dir."
            )
        for left in folder.glob("checkpoint*.pt.tmp*"):  # by a run that was killed while it saved
            left.unlink(missing_ok=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _check_writable(flag: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"Cannot write to {flag}={folder} ({error.strerror}): choose another folder.") from error


def check_room(trainer: Any) -> None:
    """Raises UserError if the disk has no room for one checkpoint beside those that are there."""
    cfg = trainer.cfg.checkpoint
    if cfg.no_save or not trainer.is_data_parallel_master:
        return
    needed, free = checkpoint_bytes(trainer), shutil.disk_usage(cfg.save_dir).free
    if free < needed:
        raise UserError(
            f"A checkpoint takes {needed / 2**20:,.0f} MiB and {cfg.save_dir} has {free / 2**20:,.0f} MiB left: "
            "make room or choose another --save-dir."
        )


def checkpoint_bytes(trainer: Any) -> int:
    """Size of a checkpoint: weights, their average, and the optimizer's state, which the first update makes."""
    weights, ema = _bytes(trainer.get_model().state_dict()), trainer.cfg.ema
    total = weights + ema.store_ema * weights  # `trainer.ema` would begin the average here, not at the first update
    parameters = list(trainer.get_model().parameters())
    if ema.store_ema and ema.ema_fp32:
        total += sum(4 * x.numel() for x in parameters if x.dtype != torch.float32)
    if not trainer.cfg.checkpoint.no_save_optimizer_state:
        moments = MOMENTS.get(trainer.cfg.optimizer._name, 0)
        total += 4 * moments * sum(x.numel() for x in parameters if x.requires_grad)
    return total


def _bytes(state: dict[str, Any]) -> int:
    tensors = {x.data_ptr(): x for x in state.values() if isinstance(x, Tensor)}  # shared ones are stored once
    return sum(x.numel() * x.element_size() for x in tensors.values())


def check_validation(trainer: Any) -> None:
    """Raises UserError if validation, tried on one batch of each subset, does not log what chooses the best checkpoint.

    Whatever validation reads for the first time (document frequencies, models that score) is read here, and each
    row of the validation file is looked at, without its image being scaled, as long as `CHECK_SECONDS` allow.
    """
    dataset = trainer.cfg.dataset
    if dataset.disable_validation:
        return
    metric, average = trainer.cfg.checkpoint.best_checkpoint_metric, trainer._ema
    with unchanged_randomness():
        for subset in dataset.valid_subset.split(","):
            check_rows(trainer.task.dataset(subset), trainer.data_parallel_rank, trainer.data_parallel_world_size)
            batches = trainer.get_valid_iterator(subset)
            with metrics.aggregate(new_root=True) as logged:
                trainer.valid_step(without_skipped(batches.first_batch)[0])
            names = logged.get_smoothed_values()
            if len(names) and metric not in names:
                shown = ", ".join(sorted(name for name in names if not name.startswith("_")))
                raise UserError(
                    f"--best-checkpoint-metric={metric} is not logged by validation of {subset!r} with these flags: "
                    f"choose one of {shown}."
                )
    trainer._ema = average  # it begins at the first update


def check_rows(dataset: OFADataset, rank: int, world_size: int) -> None:
    """Reads this process's share of the rows for what they are compared with.

    Raises:
        BadRowError: a row that cannot be read. UserError: no row has a reference.
    """
    if dataset.config.skip_bad_rows:
        return
    end, seen, without = time.monotonic() + CHECK_SECONDS, 0, 0
    for index in range(rank, len(dataset), world_size):
        references = dataset.example_of(index).references
        seen += 1
        without += references is not None and not any(references)
        if time.monotonic() > end:
            break
    seen, without = map(int, sum_over_ranks([float(seen), float(without)]))
    if without == seen:
        raise UserError(f"{dataset.rows.path} has no references to compare with: correct the file or --selected-cols.")
    if without:
        logger.warning("%s: %d of %d rows have no reference, and score 0.", dataset.rows.path, without, seen)


def warn_of_unknown_words(dataset: OFADataset) -> None:
    """Logs how many of up to `WORD_ROWS` training rows, from all over the file, have words outside the vocabulary."""
    vocab = dataset.vocab
    if not vocab.has_unknown:
        return
    end, seen, with_unknown = time.monotonic() + CHECK_SECONDS, 0, 0
    words: Counter[str] = Counter()  # word -> rows that have it
    for index in np.unique(np.linspace(0, len(dataset) - 1, WORD_ROWS).astype(int)).tolist():
        vocab.unknown_words.clear()
        try:
            example = dataset.example_of(index)
            for text in (example.source, example.target):
                if isinstance(text, str):
                    vocab.encode(text)
        except ValueError:  # whoever reads the row for its sample says so
            continue
        seen += 1
        with_unknown += bool(vocab.unknown_words)
        words.update(list(vocab.unknown_words))
        if time.monotonic() > end:
            break
    if words:
        logger.warning(
            "%s: %d of %d rows checked have words outside the vocabulary; they are learned as unknown: %s. "
            "Pass the --bpe-dir of a vocabulary that has them.",
            dataset.rows.path, with_unknown, seen, listed(words),
        )  # fmt: skip


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Leaves the random generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)
