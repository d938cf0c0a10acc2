"""The Hugging Face folder layout of the published networks: file names, parameter names, config.json (read only)."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import UserError

T = TypeVar("T")

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Inside layers.N.: their name -> ours. No name stands on both sides, so renaming twice changes nothing.
_ENCODER_NAMES = {"self_attn_mid_layer_norm": "attn_ln", "ffn_layer_norm": "ffn_layernorm"}
_DECODER_NAMES = {
    "self_attn_mid_layer_norm": "self_attn_ln",
    "cross_attn_mid_layer_norm": "cross_attn_ln",
    "cross_attn": "encoder_attn",
    "cross_attn_layer_norm": "encoder_attn_layer_norm",
    "ffn_layer_norm": "ffn_layernorm",
}
_LAYER_NAMES = {"encoder": _ENCODER_NAMES, "decoder": _DECODER_NAMES}
_LAYER_ENTRY = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.([^.]+)\.(.+)")


def to_fairseq_names(state: Mapping[str, T]) -> dict[str, T]:
    """The same entries under fairseq's names; those already so named stay."""
    return {_fairseq_name(name): value for name, value in state.items()}


def _fairseq_name(name: str) -> str:
    match = _LAYER_ENTRY.fullmatch(name)
    if match is None:
        return name
    side, layer, module, rest = match.groups()
    return f"{side}.layers.{layer}.{_LAYER_NAMES[side].get(module, module)}.{rest}"


def find_weights(folder: Path) -> Path:
    """The weight file of a folder; raises UserError when the folder is not in this layout."""
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None or not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is a folder without config.json and {' or '.join(WEIGHT_FILES)}: "
            "name a checkpoint file, or a folder in Hugging Face layout."
        )
    return weights


def read_options(folder: Path) -> dict[str, Any]:
    """Options of config.json, for those that are called as in `OFAConfig`; the tensors tell the others.

    The layout cannot say whether the decoder's input holds positions: in all its networks it does not.
    Raises UserError when config.json is unreadable or another model's.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a JSON object ({error}): copy or download the folder again.") from error
    if kind != "ofa":
        raise UserError(f"{path} describes a network of type {kind!r}, not 'ofa': name an OFA folder.")
    return {**config, "disable_entangle": True}
