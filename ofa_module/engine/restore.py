"""What a run goes on from: the content of a checkpoint, as this run needs it."""

import logging
import os
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from data.text import Vocabulary
from models.weights import upgrade_state_dict
from models.weights.card import Card
from ofa_module.continuing import log_differences
from tasks.epochs import rows_of_earlier_version
from utils import optimizer_state
from utils.checkpoint import DamagedCheckpointError, load_checkpoint, previous_checkpoint
from utils.errors import UserError

logger = logging.getLogger(__name__)


def read_for(cfg: DictConfig, vocab: Vocabulary, path: str, trained: nn.Module | None) -> dict[str, Any]:
    """A checkpoint's content; nothing in it is executed, and every released form is understood.

    In the save directory a torn file gives way to the most trained good one. What a card says of the ids is checked.

    Args:
        trained: the network whose parameters the optimizer's state is brought to; None leaves that state as it is.
    """
    own = os.path.realpath(cfg.checkpoint.save_dir)
    try:
        state = load_checkpoint(path)
    except DamagedCheckpointError as error:
        other = previous_checkpoint(path) if os.path.dirname(os.path.realpath(path)) == own else None
        if other is None:
            raise
        logger.warning("%s Resuming from %s.", error, other)
        state = load_checkpoint(other)
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
    return state


def _choose_weights(cfg: DictConfig, state: dict[str, Any], path: str) -> None:
    """Says by a checkpoint's last and averaged weights what the network and its average start from; in place."""
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
    """The optimizer's state in this run's order; UserError where it does not fit, though the network does."""
    try:
        return optimizer_state.fit(saved, weights, trained, path)
    except UserError:
        try:
            upgrade_state_dict(dict(weights), trained, source=path)
        except UserError:
            return saved  # it is another network: loading its weights, which comes next, says so
        raise
