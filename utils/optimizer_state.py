"""The saved state of an optimizer, brought into the order of a model's parameters.

A saved optimizer numbers its slots by the order in which its program had registered the parameters, without names. The
same file's weights do have names, in that order, so that every slot finds its parameter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError

# Names of the losses' classes in our earlier files, and in the original's and ours today; fairseq compares them.
FORMER_CRITERIONS = {
    name: f"{name}Criterion" for name in ("AdjustLabelSmoothedCrossEntropy", "AdjustLabelSmoothedEncouragingLoss")
}
# Half-precision wrappers of the original's, whose state is that of the optimizer inside.
PLAIN = {"FP16Optimizer": "FairseqAdam", "MemoryEfficientFP16Optimizer": "FairseqAdam", "AMPOptimizer": "FairseqAdam"}
RESET = "pass --reset-optimizer to start with a new one"


def rename_criterions(history: Sequence[dict[str, Any]]) -> None:
    """Gives the losses in a checkpoint's `optimizer_history`, in place, the names that they have today."""
    for entry in history:
        name = entry.get("criterion_name")
        entry["criterion_name"] = FORMER_CRITERIONS.get(str(name), name)


def fit(optimizer: Mapping[str, Any], weights: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Any]:
    """The state for `model`: slot i belongs to the i-th parameter that is trained.

    Args:
        optimizer: "state" (slot -> name -> tensor or number) and "param_groups", as PyTorch writes them, with a slot
            for each trained parameter or, in half precision, with one for all of them, one after the other.
        weights: the model's weights in the same file, as stored. source: its path, for messages.

    Raises UserError unless every slot is of the parameter that it would be given to.
    """
    ours, shapes = _trained(model)
    order = _order_of(weights, model, ours)
    slots = [slot for group in optimizer["param_groups"] for slot in group["params"]]
    if sorted(order) != sorted(ours):
        absent = next(name for name in ours if name not in order)
        raise UserError(f"{source} has no weights {absent}, so its optimizer cannot be continued: {RESET}.")
    for name in order:
        if weights[order[name]].shape != shapes[name]:
            stored, own = list(weights[order[name]].shape), list(shapes[name])
            raise UserError(f"The optimizer of {source} is for {name} of shape {stored}, here it is {own}: {RESET}.")
    theirs = list(order)
    if len(slots) == 1 < len(ours):
        groups = [{**group, "params": list(range(len(ours)))} for group in optimizer["param_groups"]]
        state = _split(optimizer["state"].get(slots[0]), theirs, ours, shapes, source)
        return {**optimizer, "state": state, "param_groups": groups}
    if len(slots) != len(ours):
        raise UserError(
            f"The optimizer of {source} trains {len(slots)} parameters, this run {len(ours)}: freeze the same ones "
            f"(--freeze-encoder-embedding, --freeze-resnet), or {RESET}."
        )
    if theirs != ours and len(optimizer["param_groups"]) > 1:
        raise UserError(f"The optimizer of {source} stores its parameters in groups of unknown order: {RESET}.")
    slot_of = dict(zip(theirs, slots, strict=True))
    state = {}
    for number, name in zip(slots, ours, strict=True):
        if slot_of[name] in optimizer["state"]:  # a parameter without a gradient so far has none
            state[number] = optimizer["state"][slot_of[name]]
            _check_shapes(state[number], name, shapes[name], source)
    return {**optimizer, "state": state}


def _trained(model: nn.Module) -> tuple[list[str], dict[str, torch.Size]]:
    """Names of the parameters that are trained, each once, in the optimizer's order; and their shapes."""
    trained = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    return list(trained), trained


def _order_of(weights: Mapping[str, Tensor], model: nn.Module, ours: Sequence[str]) -> dict[str, str]:
    """Our name of each trained parameter -> the first of its names in the file, in the file's order."""
    first = {p: name for name, p in reversed(list(model.named_parameters()))}
    canonical = {name: first[p] for name, p in model.named_parameters(remove_duplicate=False)}
    wanted = set(ours)
    order: dict[str, str] = {}
    for stored in weights:
        name = canonical.get(stored)
        if name in wanted:
            order.setdefault(name, stored)
    return order


def _split(
    slot: Mapping[str, Any] | None,
    theirs: Sequence[str],
    ours: Sequence[str],
    shapes: Mapping[str, torch.Size],
    source: str,
) -> dict[int, dict[str, Any]]:
    """A slot for each of our parameters from one of vectors that hold all of them; numbers are every parameter's."""
    if slot is None:
        return {}
    sizes = [shapes[name].numel() for name in theirs]
    state: dict[int, dict[str, Any]] = {number: {} for number in range(len(ours))}
    number_of = {name: number for number, name in enumerate(ours)}
    for key, value in slot.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            for own in state.values():
                own[key] = value
            continue
        if value.shape != (sum(sizes),):
            raise UserError(
                f"The optimizer of {source} trains {value.numel()} weights, this run {sum(sizes)}: freeze the same "
                f"parameters (--freeze-encoder-embedding, --freeze-resnet), or {RESET}."
            )
        for name, part in zip(theirs, value.split(sizes), strict=True):
            state[number_of[name]][key] = part.view(shapes[name])
    return state


def _check_shapes(slot: Mapping[str, Any], name: str, shape: torch.Size, source: str) -> None:
    """Raises UserError for a tensor that is neither a parameter's nor one of its factors (Adafactor) nor a number."""
    possible = {shape, shape[:-1], shape[:-2] + shape[-1:]}
    for key, value in slot.items():
        if isinstance(value, Tensor) and value.numel() != 1 and value.shape not in possible:
            raise UserError(
                f"The optimizer of {source} has {key} of shape {list(value.shape)} for {name} of shape {list(shape)}: "
                f"it belongs to other weights, {RESET}."
            )
