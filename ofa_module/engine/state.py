"""What a checkpoint holds of a run, and what a run takes from a checkpoint that it goes on from.

`trainer` is an `OFATrainer`, which imports this file.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

from fairseq import utils as fairseq_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import meters, metrics
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from data.text import Vocabulary
from models.weights import upgrade_state_dict
from models.weights.card import KEY, Card
from ofa_module.continuing import log_differences
from ofa_module.engine.optimizers import restore_optimizer
from tasks.epochs import rows_of_earlier_version
from utils import optimizer_state
from utils.checkpoint import DamagedCheckpointError, load_checkpoint, previous_checkpoint
from utils.errors import UserError
from utils.original import with_original_options

logger = logging.getLogger(__name__)


def state_of(trainer: Any) -> dict[str, Any]:
    """What fairseq and the original expect of a file, and the card of the run; all tensors on the CPU."""
    cfg: Any = OmegaConf.to_container(trainer.cfg, resolve=True, enum_to_str=True)
    model = {"patch_image_size": cfg["task"]["patch_image_size"], **cfg["model"]}
    criterion, ema = trainer.get_criterion(), trainer.ema
    past = {
        "criterion_name": type(criterion).__name__,
        "optimizer_name": type(trainer.optimizer).__name__,
        "lr_scheduler_state": trainer.schedule.rates.state_dict(),
        "num_updates": trainer.get_num_updates(),
    }
    extra = {"metrics": metrics.state_dict(), "previous_training_time": trainer.cumulative_training_time()}
    weights = trainer.get_model().state_dict()
    if ema is not None:
        tables = {name: weights[name] for name in ema.skip_keys}  # equal, and so stored once
        extra["ema"] = {**ema.get_model().state_dict(), **tables}
        if trainer.cfg.ema.ema_fp32:
            extra["ema_fp32_params"] = ema.fp32_params
    if trainer.scaler is not None:
        extra["loss_scale"] = trainer.scaler.loss_scale
    state = {
        "args": None,
        "cfg": {**cfg, "model": with_original_options(model)},
        "model": weights,
        "criterion": criterion.state_dict() if _has_parameters(criterion) else None,
        "optimizer_history": [*trainer.history, past],
        "task_state": trainer.task.state_dict(),
        "extra_state": extra,
        KEY: trainer.card,
    }
    if not trainer.cfg.checkpoint.no_save_optimizer_state:
        state["last_optimizer_state"] = trainer.optimizer.state_dict()
    return dict(fairseq_utils.apply_to_sample(_OnCPU(), state))


def restore(
    trainer: Any,
    filename: str,
    reset_optimizer: bool,
    reset_schedule: bool,
    optimizer_overrides: Mapping[str, Any],
    reset_meters: bool,
) -> dict[str, Any] | None:
    """Brings a run to where a file was written; its `extra_state`. See `OFATrainer.load_checkpoint`."""
    state = _read(trainer, filename, None if reset_optimizer else trainer.get_model())
    filename = state["read_from"]
    history, criterion = state["optimizer_history"] or [], trainer.get_criterion()
    try:
        if history and "num_updates" in history[-1]:
            trainer.get_model().set_num_updates(history[-1]["num_updates"])
        trainer.get_model().load_state_dict(state["model"], strict=True)
        if state.get("criterion") and _has_parameters(criterion):
            criterion.load_state_dict(state["criterion"], strict=True)
    except UserError as error:
        raise UserError(f"Cannot load model parameters from checkpoint {filename}: {error}") from error
    trainer.history, extra = history, state["extra_state"]
    saved = state.get("last_optimizer_state")
    if saved is not None and not reset_optimizer:
        _restore_optimizer(trainer, saved, filename, optimizer_overrides)
        if not reset_schedule:
            trainer.schedule.rates.load_state_dict(history[-1]["lr_scheduler_state"])
        trainer.set_num_updates(history[-1]["num_updates"])
        if trainer.scaler is not None and "loss_scale" in extra:
            trainer.scaler.loss_scale = extra["loss_scale"]
    elif saved is None and not reset_optimizer and history:
        logger.warning("%s has no optimizer state: the optimizer and the learning rate start over.", filename)
    if extra is not None:
        _restore_extra(trainer, extra, reset_meters)
        epoch = extra["train_iterator"]["epoch"]
        logger.info("Loaded checkpoint %s (epoch %s @ %d updates)", filename, epoch, trainer.get_num_updates())
    return extra


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _read(trainer: Any, filename: str, trained: nn.Module | None) -> dict[str, Any]:
    """The file's content, which one process reads for all unless --load-checkpoint-on-all-dp-ranks."""
    cfg = trainer.cfg
    alone = trainer.data_parallel_world_size == 1 or cfg.checkpoint.load_checkpoint_on_all_dp_ranks
    state: Any = None
    if alone or trainer.is_data_parallel_master:
        state = read_for(cfg, trainer.task.vocab, filename, trained)
    if not alone:
        group = distributed_utils.get_data_parallel_group()
        state = distributed_utils.broadcast_object(state, src_rank=0, group=group, dist_device=trainer.device)
    return dict(state)


def _restore_optimizer(trainer: Any, saved: dict[str, Any], filename: str, overrides: Mapping[str, Any]) -> None:
    last = trainer.history[-1]
    try:
        for what, own in (("criterion", trainer.get_criterion()), ("optimizer", trainer.optimizer)):
            name = optimizer_state.PLAIN.get(last[f"{what}_name"], last[f"{what}_name"])
            if name != type(own).__name__:
                raise ValueError(f"its {what} is {name}, this run's {type(own).__name__}")
        restore_optimizer(trainer.optimizer, saved, overrides)
    except ValueError as error:
        advice = optimizer_state.RESET
        raise UserError(f"The optimizer of {filename} cannot be continued ({error}): {advice}.") from error


def _restore_extra(trainer: Any, extra: dict[str, Any], reset_meters: bool) -> None:
    trainer.clock.restart(extra.get("previous_training_time", 0.0))
    iterator = extra["train_iterator"]
    trainer.end_epoch(iterator["epoch"])
    begins = iterator.get("version", 1) >= 2 and iterator["iterations_in_epoch"] == 0
    if "metrics" in extra and not reset_meters and not begins:
        metrics.load_state_dict(extra["metrics"])
        for meter in metrics.get_meters("default"):
            if isinstance(meter, meters.TimeMeter):
                meter.reset()
        if (wall := metrics.get_meter("default", "wall")) is not None:
            wall.start()  # which its state does not hold
    if trainer.ema is not None:
        trainer.ema.restore(extra["ema"])
        if trainer.cfg.ema.ema_fp32:
            trainer.ema.build_fp32_params(extra.get("ema_fp32_params"))


def read_for(cfg: DictConfig, vocab: Vocabulary, path: str, trained: nn.Module | None) -> dict[str, Any]:
    """A checkpoint's content; nothing in it is executed, and every released form is understood.

    In the save directory a torn file gives way to the most trained good one. What a card says of the ids is checked.

    Args:
        trained: the model whose parameters the optimizer's state is brought to; None leaves that state as it is.
    """
    own = os.path.realpath(cfg.checkpoint.save_dir)
    try:
        state = load_checkpoint(path)
    except DamagedCheckpointError as error:
        other = previous_checkpoint(path) if os.path.dirname(os.path.realpath(path)) == own else None
        if other is None:
            raise
        logger.warning("%s Resuming from %s.", error, other)
        state, path = load_checkpoint(other), str(other)
    if (card := Card.read(state, path)) is not None:
        given = f"--bpe-dir={cfg.task.bpe_dir}"
        advice = "pass the --bpe-dir, --code-dict-size and --num-bins it was trained with"
        card.check_vocabulary(vocab, path, given, advice, grown=True)
    rows_of_earlier_version(state)
    optimizer_state.rename_criterions(state.get("optimizer_history") or [])
    if trained is not None and (saved := state.get("last_optimizer_state")):
        state["last_optimizer_state"] = _fitted(saved, state["model"], trained, path)
    log_differences(cfg, state, path)
    _choose_weights(cfg, state, path)
    return {**state, "read_from": path}


def _choose_weights(cfg: DictConfig, state: dict[str, Any], path: str) -> None:
    """Says by a checkpoint's last and averaged weights what the model and its average start from; in place."""
    latest, extra = state["model"], state.get("extra_state") or {}
    average = extra.get("ema_fp32_params") or extra.get("ema")
    if cfg.training.use_ema_weights_to_init_param and average:
        logger.info("Training starts from the averaged weights of %s.", path)
        state["model"] = dict(average)
    if cfg.ema.store_ema and extra and (cfg.training.use_latest_weights_to_init_ema or "ema" not in extra):
        if "ema" not in extra:
            logger.warning("%s has no averaged weights: the average starts from its weights.", path)
        else:
            logger.info("The average starts from the last weights of %s.", path)
        extra["ema"] = dict(latest)
        extra.pop("ema_fp32_params", None)


def _fitted(saved: dict[str, Any], weights: dict[str, Tensor], trained: nn.Module, path: str) -> dict[str, Any]:
    """The optimizer's state in this run's order; UserError where it does not fit, though the model does."""
    try:
        return optimizer_state.fit(saved, weights, trained, path)
    except UserError:
        try:
            upgrade_state_dict(dict(weights), trained, source=path)
        except UserError:
            return saved  # it is another model: loading its weights, which comes next, says so
        raise


class _OnCPU:
    """Tensors as a file holds them; those that share their memory still do."""

    def __init__(self) -> None:
        self._seen: dict[Any, Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if key not in self._seen or not tensor.numel():
            self._seen[key] = tensor.detach().cpu().contiguous()
        return self._seen[key]
