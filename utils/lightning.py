"""Weights of a PyTorch Lightning checkpoint, read without importing or running anything it names."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.checkpoint import check_whole, damaged
from utils.errors import UserError


class _StandIn(list[Any]):
    """Takes the place of callbacks, schedulers and their like: accepts whatever unpickling does to it."""

    def __new__(cls, *arguments: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def load_lightning_weights(path: Path) -> dict[str, Tensor]:
    """The entry `state_dict` of a Lightning checkpoint, or a bare state dict; tensors on the CPU.

    torch reads the file with `weights_only`; each class or function that it names beyond tensors becomes an inert
    stand-in, so the trainer that wrote the file need not be installed.

    Raises:
        DamagedCheckpointError: empty, cut short or altered.
        UserError: no such file, or one without weights.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}: check the path.")
    check_whole(path)
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_StandIn, name) for name in named]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign pickle can raise anything
        raise damaged(path, "its list of contents is cut short or of an unknown form") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no state_dict: name a checkpoint file.")
    weights = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{path} holds no weights: name a checkpoint file.")
    return weights
