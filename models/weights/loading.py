"""Models from checkpoints and back: their options, their weights."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor

from models.ofa import OFA, OFAConfig
from models.ofa.config import ARCHITECTURES, COMMON
from models.unset_weights import UnsetWeights
from models.weights.upgrade import describe, summarise, upgrade_state_dict
from utils.checkpoint import PathLike, check_state, load_checkpoint, save_checkpoint, without_history
from utils.errors import UserError
from utils.option_values import odd_option

logger = logging.getLogger(__name__)


def load_model(
    path: PathLike,
    overrides: Mapping[str, Any] | None = None,
    ema: bool = False,
    device: str | torch.device = "cpu",
) -> OFA:
    """The model of a checkpoint, float32, in eval mode.

    Its options are those of the file, corrected by what the tensors tell; without options in the file, what the
    tensors tell and the released models' defaults.

    Args:
        path: as in `load_checkpoint`. overrides: options of `OFAConfig` that win over the file's.
        ema: take the running average of the weights (`extra_state.ema`) instead of the last ones.

    Raises UserError when the file is no OFA model, has no such average, or an override does not fit the weights.
    """
    checkpoint = load_checkpoint(path, mmap=True)
    state = checkpoint["model"]
    if ema:
        state = (checkpoint.get("extra_state") or {}).get("ema")
        if state is None:
            raise UserError(f"{path} holds no running average of the weights: leave out --ema-eval.")
    config = model_config(checkpoint, overrides, str(path))
    check_state(state, str(path))
    try:
        with UnsetWeights():
            model = OFA(config)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise UserError(f"{path} holds a model that cannot be built: {error!s:.200}") from error
    upgraded = dict(state)
    report = upgrade_state_dict(upgraded, model, source=str(path))
    parameters = {name for name, _ in model.named_parameters()}
    if random := [name for name in report.missing if name in parameters]:
        model, upgraded = OFA(config), dict(state)
        upgrade_state_dict(upgraded, model, source=str(path))
        logger.warning("%s lacks weights, left at random: %s", path, ", ".join(summarise(random)))
    model.load_state_dict(upgraded)
    return model.to(device).eval()


def model_config(
    checkpoint: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, source: str = "The checkpoint"
) -> OFAConfig:
    """Options of a checkpoint's model: those of its size, the stored ones, what the tensors tell, the overrides.

    Where they disagree the later ones win, except for `code_image_size`: the tensor it is told by had another length
    in older files. A flag that is absent from stored options was not given, hence False.

    Args:
        checkpoint: as `load_checkpoint` returns it. source: what error messages call it.

    Raises UserError for anything but a whole OFA model, and for unknown or impossible overrides.
    """
    known = {f.name for f in fields(OFAConfig)}
    if unknown := sorted(set(overrides or {}) - known):
        raise UserError(f"OFA has no option {', '.join(unknown)}: correct the overrides.")
    check_state(checkpoint["model"], source)
    inferred = _infer(checkpoint["model"], source)
    stored = (checkpoint.get("cfg") or {}).get("model") or checkpoint.get("args")
    if stored is None:
        options = asdict(OFAConfig.from_arch("ofa_base"))
    else:
        stored = vars(stored) if isinstance(stored, argparse.Namespace) else stored
        size = ARCHITECTURES.get(str(stored.get("_name") or stored.get("arch")), COMMON)
        # The trunk's weights are in the checkpoint; the file they once came from may be gone.
        given = {k: v for k, v in stored.items() if k in known and v is not None and k != "resnet_model_path"}
        options = {**size, **given}
        if "code_image_size" in given:
            inferred["code_image_size"] = given["code_image_size"]
    options = {**options, **inferred, **(overrides or {})}
    if odd := odd_option(OFAConfig, options):
        raise UserError(f"{source} holds a model that cannot be built: {odd}.")
    try:
        return replace(OFAConfig(), **options)
    except ValueError as error:
        raise UserError(f"{source} holds a model that cannot be built: {error}") from error


def _infer(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    options = describe(state)
    needed = {"vocab_size": "token table", "encoder_layers": "encoder", "decoder_layers": "decoder"}
    needed |= {"resnet_type": "image trunk", "encoder_attention_heads": "relative position tables"}
    if absent := [part for option, part in needed.items() if option not in options]:
        start = "start training from it (--restore-file)" if "encoder_layers" in options else "name an OFA checkpoint"
        raise UserError(f"{source} is not a complete OFA model (no {', '.join(absent)}): {start}.")
    return options


def save_model(model: OFA, path: PathLike) -> None:
    """Writes weights and options, from which `load_model` rebuilds this very model."""
    save_checkpoint(without_history(model.state_dict(), asdict(model.config)), path)
