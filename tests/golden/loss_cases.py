"""The golden batches of the registered losses, by their recipe."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Any]


def _pictures(batch: Batch, seed: int, size: int) -> np.ndarray:
    """Pictures of a batch recipe: drawn after the source and target ids."""
    rng = np.random.default_rng(seed)
    src, target = np.array(batch["src_tokens"]), np.array(batch["target"])
    low, high = (58457, 59457) if seed == 501 else (4, 50000)
    rng.integers(4, 50000, src.shape)
    rng.integers(low, high, target.shape)
    return rng.standard_normal((len(src), 3, size, size), dtype=np.float32)


def _constraint_masks(batch: Batch) -> Tensor:
    rng = np.random.default_rng(503)
    target = np.array(batch["target"])
    masks = torch.zeros(*target.shape, 59457, dtype=torch.bool)
    for row, position in zip(*np.nonzero(target != 1), strict=True):
        masks[row, position, torch.from_numpy(rng.integers(4, 50000, 20))] = True
        masks[row, position, target[row, position]] = True
    return masks


def make_batch(golden_losses: dict[str, Any], name: str) -> Any:
    """The batch that a run of `losses_tiny.json` names; two parts of one for pretraining."""
    if name == "pretraining":
        return _pretraining(golden_losses)
    stored = golden_losses["batches"][name.split(" ")[0]]
    seed, size = {"caption": (500, 128), "boxes": (501, 128), "answers": (502, 64)}[name.split(" ")[0]]
    target = torch.tensor(stored["target"])
    pictures = _pictures(stored, seed, size)
    np.testing.assert_array_equal(pictures.ravel()[:8], np.float32(stored["patch_images_first8"]))
    sample = {
        "nsentences": target.size(0),
        "ntokens": int((target != 1).sum()),
        "target": target,
        "net_input": {
            "src_tokens": torch.tensor(stored["src_tokens"]),
            "prev_output_tokens": torch.tensor(stored["prev_output_tokens"]),
            "patch_images": torch.from_numpy(pictures),
            "patch_masks": torch.tensor(stored["patch_masks"]),
        },
    }
    if "conf" in name:
        sample["conf"] = torch.tensor(golden_losses["conf"])[: target.size(0)]
    if name.startswith("answers"):
        sample["constraint_masks"] = _constraint_masks(stored)
    return sample


def _pretraining(golden_losses: dict[str, Any]) -> list[Batch]:
    """Both parts of the golden pretraining batch."""
    parts = []
    stored_parts = golden_losses["batches"]["pretraining"].values()
    for stored, seed, conf in zip(stored_parts, (504, 505), ([1.0, 0.6, 1.0], [2.0, 2.0, 2.0]), strict=True):
        target = torch.tensor(stored["target"])
        net_input = {name: torch.tensor(stored[name]) for name in ("src_tokens", "prev_output_tokens")}
        net_input["patch_masks"] = torch.tensor(stored.get("patch_masks", [True] * len(target)))
        net_input["patch_images"] = torch.from_numpy(_pictures(stored, seed, 128))
        if "code_masks" in stored:
            net_input["code_masks"] = torch.tensor(stored["code_masks"])
        counts = {"nsentences": target.size(0), "ntokens": int((target != 1).sum())}
        parts.append({**counts, "target": target, "conf": torch.tensor(conf), "net_input": net_input})
    return parts
