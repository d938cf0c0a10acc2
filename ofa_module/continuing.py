"""A run that resumes from a checkpoint: with which other options, whether anything is left, where it stopped."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ofa_module.preflight import LAST

logger = logging.getLogger(__name__)
# Groups of options that say what is learned and how; and what of them does not matter to it.
GROUPS = (
    "common", "dataset", "optimization", "checkpoint", "task", "model", "criterion", "optimizer", "lr_scheduler", "ema",
)  # fmt: skip
LOGS = "aim_ azureml log_ no_progress_bar profile suppress tensorboard wandb".split()
HARMLESS = ("num_workers", "data_buffer_size", "user_dir", "restore_file", "save_dir", "finetune_from_model", "reset_")


class FinishedRun(Exception):
    """Nothing is left to train; the message says how to start another run."""


def log_differences(cfg: DictConfig, state: Mapping[str, Any], path: str) -> None:
    """Names the options that differ from those of the checkpoint, if training resumes from it."""
    given = cfg.checkpoint
    if given.reset_optimizer and given.reset_dataloader:
        return  # another training, which only starts from its weights
    if found := dict.fromkeys(differences(cfg, state)):  # an option of several groups once
        logger.warning("Options that differ from those of %s: %s", path, "; ".join(found))


def differences(cfg: DictConfig, state: Mapping[str, Any]) -> Iterator[str]:
    """`--flag=value (was value)` of each option that a checkpoint has with another value."""
    now: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    then = state.get("cfg") or {}
    groups = {name: (now.get(name), then.get(name)) for name in (*GROUPS, "distributed_training")}
    for name, (new, old) in groups.items():
        if not isinstance(new, Mapping) or not isinstance(old, Mapping):
            continue
        for key, value in new.items():
            if name == "distributed_training" and key != "distributed_world_size":
                continue
            if key.startswith((*LOGS, *HARMLESS)) or key not in old or value == old[key]:
                continue
            flag = name.replace("_", "-") if key == "_name" else key.replace("_", "-")
            yield f"--{flag}={_plain(value)} (was {_plain(old[key])})"


def _plain(value: Any) -> Any:
    """A value as it is given on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


def check_unfinished(trainer: Any, next_epoch: int) -> None:
    """Raises FinishedRun if --max-epoch, --max-update or --stop-time-hours is reached before the first update."""
    limits, updates = trainer.cfg.optimization, trainer.get_num_updates()
    hours = trainer.cumulative_training_time() / 3600
    if limits.max_epoch and next_epoch > limits.max_epoch:
        reached = f"--max-epoch={limits.max_epoch}"
    elif limits.max_update and updates >= limits.max_update:
        reached = f"--max-update={limits.max_update}"
    elif 0 < limits.stop_time_hours < hours:
        reached = f"--stop-time-hours={limits.stop_time_hours:g}"
    else:
        return
    given = trainer.cfg.checkpoint
    path = Path(given.save_dir, LAST) if given.restore_file == LAST else Path(given.restore_file)
    raise FinishedRun(
        f"This run is finished: {path} was saved after {updates} updates, and {reached} is reached. Nothing was "
        f"trained. To train longer, raise {reached.partition('=')[0]}; to start another run, choose another "
        f"--save-dir; to start it from these weights, also pass --restore-file={path} --reset-optimizer "
        "--reset-dataloader --reset-meters."
    )


def last_checkpoint(cfg: DictConfig) -> str:
    """What an interrupted training says: its last checkpoint, and how to resume from it."""
    folder = Path(cfg.checkpoint.save_dir)
    files = sorted(folder.glob("checkpoint*.pt"), key=lambda file: (file.name == LAST, file.stat().st_mtime))
    if not files:
        return f"No checkpoint was saved in {folder}."
    again = "The same command resumes from it."
    if cfg.checkpoint.restore_file != LAST:
        again = "The same command without --restore-file and --reset-* resumes from it."
    return f"The last checkpoint is {files[-1]}. {again}"
