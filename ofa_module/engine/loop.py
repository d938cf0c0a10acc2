"""A training run: epochs of updates, validation, checkpoints, and when it ends."""

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fairseq import tasks
from fairseq import utils as fairseq_utils
from fairseq.data.iterators import GroupedIterator
from fairseq.distributed import utils as distributed_utils
from fairseq.distributed.utils import is_master
from fairseq.logging import metrics
from omegaconf import DictConfig, OmegaConf, open_dict

from ofa_module.continuing import FinishedRun, check_unfinished
from ofa_module.engine import log
from ofa_module.engine.files import Checkpoints
from ofa_module.engine.host_memory import keep_freed_memory
from ofa_module.engine.trainer import OFATrainer
from ofa_module.preflight import (
    check_files,
    check_room,
    check_start,
    check_validation,
    locked_folder,
    warn_of_unknown_words,
)
from ofa_module.run_file import save_run_file
from utils.checkpoint import SAFE_GLOBALS
from utils.errors import UserError

logger = logging.getLogger(__name__)


def train(cfg: DictConfig) -> None:
    """Trains as the configuration of `train.parse_args` says; UserError for what cannot be."""
    check_files(cfg)
    check_start(cfg.checkpoint)
    # Processes hand checkpoints on to each other through the same safe reader.
    torch.serialization.add_safe_globals([distributed_utils._TensorPlaceholder, *SAFE_GLOBALS])
    with open_dict(cfg):
        flags = cfg.training.pop("written", None)
    with locked_folder(cfg), log.quiet(cfg):
        if flags and is_master(cfg.distributed_training) and not cfg.checkpoint.no_save:
            save_run_file(flags, cfg)
        if cfg.training.auto_batch:
            from ofa_module.engine.plan import choose_batch  # imports much that other runs do not need

            choose_batch(cfg)
        try:
            Run(cfg).train()
        except FinishedRun as end:
            logger.warning("%s", end)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"The GPU is out of memory at --batch-size={cfg.dataset.batch_size}: halve it and double "
                "--update-freq, or pass --auto-batch or --checkpoint-activations."
            ) from error


class Run:
    """A run from its setup to its end."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        metrics.reset()
        np.random.seed(cfg.common.seed)
        fairseq_utils.set_torch_seed(cfg.common.seed)
        if cfg.training.verbose:
            logger.info("%s", OmegaConf.to_yaml(cfg))
        task: Any = tasks.setup_task(cfg.task)
        model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
        if cfg.training.verbose:
            logger.info("%s", model)
        self.subsets = [] if cfg.dataset.disable_validation else cfg.dataset.valid_subset.split(",")
        for subset in self.subsets:
            task.load_dataset(subset, combine=False, epoch=1)
        self.trainer = OFATrainer(cfg, task, model, criterion)
        self.checkpoints = Checkpoints(cfg.checkpoint)
        self.epoch = self.checkpoints.restore(self.trainer)
        check_unfinished(self.trainer, self.epoch.next_epoch_idx)
        check_room(self.trainer)
        check_validation(self.trainer)
        if self.trainer.is_data_parallel_master:
            warn_of_unknown_words(task.dataset(cfg.dataset.train_subset))

    def train(self) -> None:
        """All epochs that are left."""
        trainer, limits, began = self.trainer, self.cfg.optimization, time.monotonic()
        if trainer.device.type == "cpu":
            keep_freed_memory()
        log.header(trainer, len(trainer.task.dataset(self.cfg.dataset.train_subset)))
        rate = trainer.get_lr()
        while self.epoch.next_epoch_idx <= (limits.max_epoch or math.inf):
            if rate <= limits.stop_min_lr:
                logger.info("--stop-min-lr=%g is reached: training stops.", limits.stop_min_lr)
                break
            score, stop = self._train_epoch()
            if stop:
                break
            rate = trainer.end_epoch(self.epoch.epoch, score)
            sharded = trainer.task.has_sharded_data(self.cfg.dataset.train_subset)
            self.epoch = trainer.get_train_iterator(self.epoch.next_epoch_idx, load_dataset=sharded)
        log.closing(trainer, self.checkpoints, began)

    @metrics.aggregate("train")
    def _train_epoch(self) -> tuple[float | None, bool]:
        """An epoch of updates: the score of its last validation, and whether the run ends with it."""
        cfg, trainer = self.cfg, self.trainer
        batches = self.epoch.next_epoch_itr(
            shuffle=self.epoch.next_epoch_idx > cfg.dataset.curriculum,
            fix_batches_to_gpus=cfg.distributed_training.fix_batches_to_gpus,
        )
        skip = cfg.optimization.skip_remainder_batch
        groups = GroupedIterator(batches, self.epoch.update_freq, skip_remainder_batch=skip)
        bar = log.progress(cfg, groups, self.epoch.epoch)
        trainer.begin_epoch(self.epoch.epoch)
        score, stop = None, False
        for samples, waited in _timed(bar):
            with metrics.aggregate("train_inner"):
                done = trainer.train_step(samples)
                if done is not None:
                    metrics.log_scalar("data_wait", waited, weight=1, priority=120, round=3)
            if done is not None and trainer.get_num_updates() % cfg.common.log_interval == 0:
                bar.log(self._stats("train_inner"), tag="train_inner", step=trainer.get_num_updates())
                metrics.reset_meters("train_inner")
            score, stop = self._validate_and_save(ends=not groups.has_next())
            if stop:
                self.epoch.close()
                break
        bar.print(self._stats("train"), tag="train", step=trainer.get_num_updates())
        metrics.reset_meters("train")
        return score, stop

    def _stats(self, name: str) -> dict[str, Any]:
        stats = metrics.get_smoothed_values(name)
        stats["wall"] = round(metrics.get_meter("default", "wall").elapsed_time, 0)
        if name == "train_inner" and (left := log.time_left(self.trainer, stats)):
            stats["left"] = left
        return stats

    def _validate_and_save(self, ends: bool) -> tuple[float | None, bool]:
        """What is due after an update: the score of validation, if there was one, and whether the run ends."""
        cfg, updates, epoch = self.cfg, self.trainer.get_num_updates(), self.epoch.epoch
        stop = self._limit_reached()
        late = updates >= cfg.dataset.validate_after_updates
        save = (
            stop
            or (ends and epoch % cfg.checkpoint.save_interval == 0)
            or (late and _due(updates, cfg.checkpoint.save_interval_updates))
        )
        validate = late and (
            stop
            or (save and not ends)
            or (ends and epoch % cfg.dataset.validate_interval == 0)
            or _due(updates, cfg.dataset.validate_interval_updates)
        )
        score = self.validate() if validate and self.subsets else None
        stop = self._out_of_patience(score) or stop
        if save or stop:
            self.checkpoints.save(self.trainer, self.epoch, score)
        return score, stop

    def _limit_reached(self) -> bool:
        limits, updates = self.cfg.optimization, self.trainer.get_num_updates()
        hours = self.trainer.cumulative_training_time() / 3600
        if limits.max_update and updates >= limits.max_update:
            logger.info("--max-update=%d is reached: training stops.", limits.max_update)
            return True
        if 0 < limits.stop_time_hours < hours:
            logger.info("--stop-time-hours=%g is reached: training stops.", limits.stop_time_hours)
            return True
        return False

    def _out_of_patience(self, score: float | None) -> bool:
        """Whether --patience validations in a row were not better than the best one."""
        patience = self.cfg.checkpoint.patience
        if score is None or patience <= 0:
            return False
        best, waited = self.checkpoints.patience
        if best is None or (score != best and self.checkpoints.is_better(score, best)):
            self.checkpoints.patience = score, 0
            return False
        self.checkpoints.patience = best, waited + 1
        if waited + 1 < patience:
            return False
        logger.info("The last %d validations (--patience) did not improve: training stops.", patience)
        return True

    def validate(self) -> float:
        """Validates every subset; --best-checkpoint-metric of the first one."""
        cfg, trainer = self.cfg, self.trainer
        if cfg.dataset.fixed_validation_seed is not None:
            fairseq_utils.set_torch_seed(cfg.dataset.fixed_validation_seed)
        trainer.task.begin_valid_epoch(self.epoch.epoch, trainer.get_model())
        scores: list[float] = []
        for subset in self.subsets:
            batches = trainer.get_valid_iterator(subset).next_epoch_itr(shuffle=False, set_dataset_epoch=False)
            bar = log.progress(cfg, batches, self.epoch.epoch, validation_of=subset)
            with metrics.aggregate(new_root=True) as logged:
                for number, sample in enumerate(bar):
                    if cfg.dataset.max_valid_steps is not None and number > cfg.dataset.max_valid_steps:
                        break
                    trainer.valid_step(sample)
            stats = logged.get_smoothed_values()
            stats["num_updates"] = trainer.get_num_updates()
            score, best = stats[cfg.checkpoint.best_checkpoint_metric], self.checkpoints.best
            if not scores and best is not None:
                better = score if self.checkpoints.is_better(score, best) else best
                stats[f"best_{cfg.checkpoint.best_checkpoint_metric}"] = better
            bar.print(stats, tag=subset, step=trainer.get_num_updates())
            scores.append(float(score))
        return scores[0]


def _due(updates: int, interval: int) -> bool:
    return interval > 0 and updates > 0 and updates % interval == 0


def _timed(batches: Any) -> Iterator[tuple[Any, float]]:
    """Each item, and the seconds for which it was waited."""
    iterator, started = iter(batches), time.monotonic()
    for item in iterator:
        yield item, time.monotonic() - started
        started = time.monotonic()
