"""A GPU that is pretended: tensors say that they live on "cuda", their numbers are computed on the CPU.

Every mix of devices raises as it would on a GPU, and waits for the host are counted. Unlike under `tests/fake_gpu.py`
numbers are real, so what chooses by them runs to its end and can be compared. Forward passes only: autograd's engine
asks for a CUDA context.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
WAITS = {"_local_scalar_dense", "nonzero", "equal", "_unique2", "masked_select"}
COPIES = {"copy_", "_to_copy", "index_put_", "index", "_index_put_impl_"}  # take tensors of the CPU too


class PretendedTensor(Tensor):
    """A tensor on "cuda"; `numbers` is the one on the CPU that it stands for."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "PretendedTensor":
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype, device="cpu", dispatch_device=True,
        )  # fmt: skip
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return torch.device("cuda:0")
        raise AssertionError(f"{func} outside of pretended_gpu()")


class PretendedGPU(TorchDispatchMode):
    """Computes on the CPU what is asked of pretended tensors.

    Attributes:
        waits: how often the host would have waited, by operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return torch.device("cuda:0")
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        pretended = [leaf for leaf in given if isinstance(leaf, PretendedTensor)]
        name, device = func.overloadpacket.__name__, kwargs.get("device")
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        on_gpu = bool(pretended) if device is None else torch.device(device).type == "cuda"
        if pretended and name not in COPIES:
            if strange := [leaf for leaf in given if not isinstance(leaf, PretendedTensor) and leaf.dim()]:
                raise RuntimeError(f"{func}: a tensor {tuple(strange[0].shape)} is not on the device of the others")
        if name == "copy_":
            on_gpu = isinstance(args[0], PretendedTensor)
        if pretended and (name in WAITS or not on_gpu or self._masks(name, args)):
            self.waits[name] += 1
        numbers = {id(leaf): leaf for leaf in pretended}
        plain = tree_map(lambda x: x.numbers if isinstance(x, PretendedTensor) else x, (args, kwargs))
        if name in ("_log_softmax", "_softmax") and plain[0][2]:  # half precision in, float32 out: only a GPU has it
            plain = (plain[0][0].float(), plain[0][1], False), plain[1]
        made = func(*plain[0], **plain[1])
        if not on_gpu:
            return made
        known = {id(leaf.numbers): leaf for leaf in numbers.values()}  # of operators in place
        return tree_map(lambda x: known.get(id(x), PretendedTensor(x)) if isinstance(x, Tensor) else x, made)

    @staticmethod
    def _masks(name: str, args: Any) -> bool:
        """Whether tensors are chosen by a boolean mask, whose number of rows the host has to know."""
        return name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])


def _new_tensor(like: Tensor, data: Any) -> Tensor:
    """`Tensor.new_tensor`, which asks no mode for the copy to the device."""
    return torch.tensor(data, dtype=like.dtype, device=like.device)


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """Inside, "cuda" can be computed on."""
    torch._C._ensureCUDADeviceGuardSet()  # without a driver, choosing a device does nothing
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor([1], device="cuda")` asks the mode for the copy
    try:
        with (
            mock.patch("torch.cuda._lazy_init", lambda: None),
            torch.backends.cudnn.flags(enabled=False),
            mock.patch("torch.Tensor.new_tensor", _new_tensor),
            mock.patch("torch.Tensor.tolist", lambda tensor: tensor.to("cpu").numpy().tolist()),
            PretendedGPU() as gpu,
        ):
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def to_gpu(module: Any) -> Any:
    """The module with its weights on the pretended GPU; what is tied stays tied."""
    moved: dict[int, Any] = {}

    def move(tensor: Tensor | None) -> Any:
        if tensor is not None and id(tensor) not in moved:
            kept = PretendedTensor(tensor.detach())
            moved[id(tensor)] = torch.nn.Parameter(kept, False) if isinstance(tensor, torch.nn.Parameter) else kept
        return None if tensor is None else moved[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            tensors.update({name: move(tensor) for name, tensor in tensors.items()})
    return module
