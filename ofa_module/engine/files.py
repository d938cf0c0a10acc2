"""Checkpoint files of a run: which are written and kept, and which one it goes on from."""

import ast
import logging
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
from fairseq.data.data_utils import numpy_seed
from omegaconf import DictConfig

from ofa_module.engine.trainer import OFATrainer
from ofa_module.preflight import LAST
from tasks.epochs import EpochBatches
from utils.checkpoint import save_checkpoint

logger = logging.getLogger(__name__)


class Checkpoints:
    """The files of a save folder.

    Args:
        cfg: fairseq's group `checkpoint`.

    Attributes:
        best: the best score of validation so far. best_update: after how many updates; None if not in this run.
        patience: the best score that --patience knows, and how many validations since were not better.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.folder = cfg, Path(cfg.save_dir)
        self.suffix = cfg.checkpoint_suffix or ""
        self.best: float | None = None
        self.best_update: int | None = None
        self.patience: tuple[float | None, int] = (None, 0)

    def is_better(self, score: float, other: float | None) -> bool:
        """Whether a score of --best-checkpoint-metric is at least as good as another."""
        return other is None or (score >= other if self.cfg.maximize_best_checkpoint_metric else score <= other)

    def restore(self, trainer: OFATrainer) -> EpochBatches:
        """Restores the trainer from the file that the flags name; the epoch that it goes on with."""
        cfg = self.cfg
        path = cfg.restore_file
        resets = [cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_meters, cfg.reset_dataloader]
        if path == LAST:
            path = str(self.folder / f"checkpoint_last{self.suffix}.pt")
            if not os.path.exists(path):
                if cfg.get("continue_once") is not None:
                    path = cfg.continue_once
                elif cfg.finetune_from_model is not None:
                    path, resets = cfg.finetune_from_model, [True] * 4
        elif self.suffix:
            path = path.replace(".pt", f"{self.suffix}.pt")
        optimizer, schedule, meters, rows = resets
        overrides = ast.literal_eval(cfg.optimizer_overrides)
        extra = trainer.load_checkpoint(path, optimizer, schedule, overrides, reset_meters=meters)
        if extra is not None and "best" in extra and not (optimizer or meters):
            self.best = extra["best"]
            best, waited = extra.get("patience") or (None, 0)
            self.patience = best, waited
        if extra is not None and not rows:
            state = extra["train_iterator"]
            epoch = trainer.get_train_iterator(state["epoch"])
            epoch.load_state_dict(state)
        else:
            epoch = trainer.get_train_iterator(1)
        trainer.end_epoch(epoch.epoch)
        return epoch

    def save(self, trainer: OFATrainer, iterator: EpochBatches, score: float | None) -> None:
        """Writes the files that are due, under names as fairseq gives them, and removes those not to be kept."""
        if score is not None and self.is_better(score, self.best):
            self.best, self.best_update = score, trainer.get_num_updates()
        if self.cfg.no_save or not trainer.is_data_parallel_master:
            return
        started = time.monotonic()
        names = self._names(iterator.epoch, iterator.end_of_epoch(), trainer.get_num_updates(), score)
        if names:
            state = trainer.state_dict()
            state["extra_state"] |= {"train_iterator": iterator.state_dict(), "val_loss": score}
            state["extra_state"]["patience"] = list(self.patience)
            if self.best is not None:
                state["extra_state"]["best"] = self.best
            first = self.folder / names[0]
            save_checkpoint(state, first)
            for name in names[1:]:
                link_or_copy(first, self.folder / name)
            logger.info(
                "Saved checkpoint %s (epoch %d @ %d updates, score %s) in %.1f s%s",
                first, iterator.epoch, trainer.get_num_updates(), score, time.monotonic() - started,
                f"; also as {', '.join(names[1:])}" if names[1:] else "",
            )  # fmt: skip
        self._remove_old(iterator.end_of_epoch())

    def _names(self, epoch: int, ends: bool, updates: int, score: float | None) -> list[str]:
        cfg, names = self.cfg, []
        if ends and not cfg.no_epoch_checkpoints and epoch % cfg.save_interval == 0:
            names.append(f"checkpoint{epoch}")
        if not ends and cfg.save_interval_updates > 0 and updates % cfg.save_interval_updates == 0:
            names.append(f"checkpoint_{epoch}_{updates}")
        if score is not None and self.is_better(score, self.best):
            names.append("checkpoint_best")
        if score is not None and cfg.keep_best_checkpoints > 0:
            kept = self._kept(self._best_pattern())
            worst = self.best if not kept else max(kept)[0] if cfg.maximize_best_checkpoint_metric else min(kept)[0]
            if self.is_better(score, worst):
                # A further digit, which resolves ties; drawn as fairseq does.
                with numpy_seed(epoch, updates, score):
                    digit = np.random.randint(0, cfg.keep_best_checkpoints)
                names.append(f"checkpoint.best_{cfg.best_checkpoint_metric}_{score:.3f}{digit}")
        if not cfg.no_last_checkpoints:
            names.append("checkpoint_last")
        return [f"{name}{self.suffix}.pt" for name in names]

    def _best_pattern(self) -> str:
        return rf"checkpoint\.best_{re.escape(self.cfg.best_checkpoint_metric)}_(-?\d+\.?\d*)"

    def _kept(self, pattern: str) -> list[tuple[float, Path]]:
        """Files of a form, with the number that its group stands for; the highest first."""
        form = re.compile(rf"{pattern}{re.escape(self.suffix)}\.pt")
        found = ((form.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted(((float(match[1]), path) for match, path in found if match), reverse=True)

    def _remove_old(self, ends: bool) -> None:
        cfg = self.cfg
        if not ends and cfg.keep_interval_updates > 0:
            pattern, every = r"checkpoint_\d+_(\d+)", cfg.keep_interval_updates_pattern
            files = [(number, path) for number, path in self._kept(pattern) if every == -1 or number % every != 0]
            _remove(files[cfg.keep_interval_updates :])
        if cfg.keep_last_epochs > 0:
            _remove(self._kept(r"checkpoint(\d+)")[cfg.keep_last_epochs :])
        if cfg.keep_best_checkpoints > 0:
            files = self._kept(self._best_pattern())
            _remove((files if cfg.maximize_best_checkpoint_metric else files[::-1])[cfg.keep_best_checkpoints :])


def _remove(files: list[tuple[float, Path]]) -> None:
    for _, path in files:
        path.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file: a hard link where the disk can, and never half a file."""
    temporary = target.with_name(f"{target.name}.tmp{os.getpid()}")
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # between two names of one file, replacing does nothing
