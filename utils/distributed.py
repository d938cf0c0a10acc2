"""Which process this is and what all of them hold: torch.distributed, or one process when it is not initialized."""

from collections.abc import Sequence
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and logs."""
    return rank() == 0


def gather_objects(obj: Any) -> list[Any]:
    """Objects of all processes in order of rank, on every process; obj must be picklable."""
    if not _is_initialized():
        return [obj]
    objects: list[Any] = [None] * world_size()
    dist.all_gather_object(objects, obj)
    return objects


@overload
def sum_over_ranks(values: Tensor) -> Tensor: ...
@overload
def sum_over_ranks(values: list[float]) -> list[float]: ...
def sum_over_ranks(values: Tensor | list[float]) -> Tensor | list[float]:
    """Element-wise sum over all processes, a new object on every one of them.

    Args:
        values: a tensor of the same shape everywhere (the sum keeps its type and device), or a list of floats of
            the same length (summed in float64).
    """
    if not isinstance(values, Tensor):
        return sum_over_ranks(torch.tensor(values, dtype=torch.float64)).tolist()
    if not _is_initialized():
        return values.clone()
    total = values.detach().to(_collective_device(), copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def read_together(added: Sequence[Any], others: Sequence[Any], device: torch.device) -> tuple[list[float], list[float]]:
    """Values as numbers, with one wait for the device that holds the tensors among them.

    Args:
        added: numbers and tensors of one element, which are summed over all processes. others: these are not.
    """
    values = [*added, *others]
    if world_size() > 1:
        plain = torch.tensor([0.0 if isinstance(x, Tensor) else float(x) for x in values], dtype=torch.float64)
        total = plain.to(device, non_blocking=True)
        if places := [i for i, x in enumerate(values) if isinstance(x, Tensor)]:
            total[places] = torch.stack([values[i].double().reshape(()) for i in places])
        dist.all_reduce(total[: len(added)])
        numbers = total.tolist()
    else:
        tensors = [x.double().reshape(()) for x in values if isinstance(x, Tensor)]
        read = iter(torch.stack(tensors).tolist() if tensors else ())
        numbers = [next(read) if isinstance(x, Tensor) else float(x) for x in values]
    return numbers[: len(added)], numbers[len(added) :]


def _collective_device() -> torch.device:
    """Where the backend wants its tensors: NCCL takes CUDA tensors only, Gloo is happiest on the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")
