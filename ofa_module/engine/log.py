"""What a person sees of a run: a header, a line per interval, validation, a summary. `--verbose` shows the rest."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from fairseq.distributed.utils import is_master
from fairseq.logging.progress_bar import BaseProgressBar, progress_bar
from omegaconf import DictConfig, OmegaConf

from ofa_module.engine.files import Checkpoints
from ofa_module.engine.trainer import OFATrainer

logger = logging.getLogger(__name__)
# Of the figures of training and validation, those that a line does not show; files and boards get all.
HIDDEN = frozenset(
    "ntokens nsentences sample_size train_wall clip ema_decay ups loss_scale gb_free ppl nll_loss wps wpb bsz".split()
)
HIDDEN_SUMS = "_"  # begins the names of the sums that a metric's figure comes from


TALKATIVE = ("fairseq.data.iterators", "fairseq.tasks", "fairseq.trainer")  # loggers of which warnings are enough


@contextmanager
def quiet(cfg: DictConfig) -> Iterator[None]:
    """Inside, what fairseq says of itself is left out, unless --verbose."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(one.level if cfg.training.verbose else logging.WARNING)
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def header(trainer: OFATrainer, rows: int) -> None:
    """Says, before the first update, what is trained on what, how, and where its files go."""
    cfg = trainer.cfg
    own = trainer.get_model().parameters()
    counts = [0, 0]
    for parameter in own:
        counts[parameter.requires_grad] += parameter.numel()
    freq, processes = list(cfg.optimization.update_freq), trainer.data_parallel_world_size
    per_update = [cfg.dataset.batch_size * processes * f for f in freq]
    device = torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "CPU"
    last = trainer.schedule.last_update()
    lines = {
        "model": f"{cfg.model._name}, {counts[1]:,} parameters trained, {counts[0]:,} frozen",
        "task": f"{cfg.task._name}, loss {cfg.criterion._name}",
        "data": f"{trainer.task.dataset(cfg.dataset.train_subset).rows.path}, {rows:,} rows",
        "batch": f"{_list(per_update)} rows: {cfg.dataset.batch_size} x {processes} processes x {_list(freq)}",
        "updates": f"{trainer.get_num_updates():,} done, {f'{last:,}' if last else 'no'} at the end",
        "optimizer": f"{cfg.optimizer._name}, rate {_list(cfg.optimization.lr)}, schedule {cfg.lr_scheduler._name}",
        "precision": str(trainer.precision),
        "devices": f"{processes} x {device}",
        "files": f"{cfg.checkpoint.save_dir}" + (" (nothing is saved)" if cfg.checkpoint.no_save else ""),
    }
    for name, text in lines.items():
        logger.info("%-10s %s", name, text)


def _list(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def progress(cfg: DictConfig, batches: Any, epoch: int, validation_of: str | None = None) -> BaseProgressBar:
    """fairseq's progress bar or lines over batches; boards (TensorBoard, Weights & Biases ...) get every figure."""
    common, master = cfg.common, is_master(cfg.distributed_training)
    bar = progress_bar(
        batches, log_format=common.log_format, log_interval=common.log_interval, epoch=epoch,
        prefix=validation_of and f"valid on '{validation_of}' subset",
        aim_repo=common.aim_repo if master else None, aim_run_hash=common.aim_run_hash if master else None,
        aim_param_checkpoint_dir=cfg.checkpoint.save_dir,
        tensorboard_logdir=common.tensorboard_logdir if master else None,
        default_log_format="simple" if common.no_progress_bar else "tqdm",
        wandb_project=common.wandb_project if master else None,
        wandb_run_name=os.environ.get("WANDB_NAME", os.path.basename(cfg.checkpoint.save_dir)),
        azureml_logging=common.azureml_logging and master,
    )  # fmt: skip
    lines: Any = bar
    while hasattr(lines, "wrapped_bar"):
        lines = lines.wrapped_bar
    if common.log_format != "json" and not cfg.training.verbose:
        lines._format_stats = partial(_shown, lines._format_stats)
    if validation_of is None:
        flat: Any = OmegaConf.to_container(cfg)
        bar.update_config(flat)
    return bar


def _shown(formatted: Any, stats: Mapping[str, Any], **options: Any) -> Any:
    kept = {key: value for key, value in stats.items() if key not in HIDDEN and not key.startswith(HIDDEN_SUMS)}
    return formatted(kept, **options)


def time_left(trainer: OFATrainer, stats: Mapping[str, Any]) -> str | None:
    """`h:mm:ss` until the last update at the speed of the figures; None where no flag says which is the last."""
    left, speed = trainer.schedule.last_update() - trainer.get_num_updates(), float(stats.get("ups") or 0)
    return str(timedelta(seconds=round(left / speed))) if left > 0 and speed > 0 else None


def closing(trainer: OFATrainer, checkpoints: Checkpoints, began: float) -> None:
    """Says, after the last update, how long it took, the best score, its file, and what evaluates it."""
    cfg = trainer.cfg
    lasted = timedelta(seconds=round(time.monotonic() - began))
    logger.info("done: %d updates, %s", trainer.get_num_updates(), lasted)
    best = checkpoints.folder / f"checkpoint_best{checkpoints.suffix}.pt"
    if checkpoints.best is not None:
        at = f" after update {checkpoints.best_update}" if checkpoints.best_update is not None else ""
        logger.info("best %s: %.4g%s", cfg.checkpoint.best_checkpoint_metric, checkpoints.best, at)
    path = best if best.exists() else checkpoints.folder / f"checkpoint_last{checkpoints.suffix}.pt"
    if path.exists():
        data, average = trainer.task.paths[-1], " --ema-eval" if cfg.ema.store_ema else ""
        command = f"python evaluate.py {data} --path={path} --task={cfg.task._name} --gen-subset=val{average}"
        logger.info("evaluate it: %s --results-path=%s", command, checkpoints.folder / "results")
