"""A GPU that does not exist: shapes and devices are real, numbers are not, and every mix of devices raises.

What has to know a number (a wait for the host on a real GPU) gets a stand-in, and is counted. Only forward passes and
losses can run so: the backward pass asks for a CUDA context.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class StandIn(TorchDispatchMode):
    """Answers what a tensor without numbers cannot, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "equal", "nonzero", "_unique2"):
            self.asked[name] += 1
            if name == "nonzero":
                return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.long)
            if name == "_unique2":
                none = args[0].new_empty(0, dtype=torch.long)
                return args[0].flatten(), none, none
            return True
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_gpu() -> Iterator[StandIn]:
    """Inside, CUDA tensors can be made. What is made without a device is on the CPU, as it would be."""
    with FakeTensorMode(), StandIn() as stand_in:
        yield stand_in


def build(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> Any:
    """A module on the GPU; its weights cannot be converted later."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            return make()
    finally:
        torch.set_default_dtype(torch.float32)
