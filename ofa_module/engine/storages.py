"""What tensors take: live storages counted while code runs, on tensors with numbers or without."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils.files import read_text, text_lines


class LiveStorages(TorchDispatchMode):
    """Follows what tensors made inside take, and answers for tensors without numbers what asks for one.

    Args:
        fake: whether tensors have no numbers.

    Attributes:
        now, peak, activations: bytes that are live, their largest number, and the largest without `gradients`.
        gradients: bytes of them that are finished gradients; `finish` is told of them.
        counted: number of elements of a target -> how many of them count for the loss.
    """

    def __init__(self, fake: bool) -> None:
        super().__init__()
        self.fake = fake
        self.now = self.peak = self.activations = self.gradients = 0
        self.counted: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._finished: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and follows what it returns."""
        name = func.overloadpacket.__name__
        if self.fake:
            if name in ("_local_scalar_dense", "equal"):
                return True
            if name == "nonzero":
                return self._places(args[0])
            if name in ("index", "index_put", "index_put_"):
                args = (args[0], self._plain_indices(args[1]), *args[2:])
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _places(self, mask: Tensor) -> Tensor:
        """Where a tensor (...) of n dimensions is not zero (m, n): everywhere, if no target tells."""
        return mask.new_empty((self.counted.get(mask.numel(), mask.numel()), mask.dim()), dtype=torch.long)

    def _plain_indices(self, indices: Iterable[Tensor | None]) -> list[Tensor | None]:
        """Indices without masks."""
        plain: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype == torch.bool:
                plain.extend(self._places(index).unbind(1))
            else:
                plain.append(index)
        return plain

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        self.activations = max(self.activations, self.now - self.gradients)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        size = self._sizes.pop(key)
        self.now -= size
        if key in self._finished:
            self._finished.remove(key)
            self.gradients -= size

    def finish(self, parameter: Tensor) -> None:
        """A parameter has its gradient: it is no activation."""
        if parameter.grad is not None and (key := parameter.grad.untyped_storage()._cdata) not in self._finished:
            self._finished.add(key)
            self.gradients += self._sizes.get(key, 0)

    def restart(self) -> None:
        """Forgets the largest numbers."""
        self.peak, self.activations = self.now, self.now - self.gradients


def kernel_bytes(path: str, name: str) -> int:
    """What Linux says of memory in a file of /proc, such as VmRSS in /proc/self/status."""
    lines = text_lines(read_text(path))
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def like_gpu() -> Iterator[None]:
    """Inside, CPU tensors are computed in the steps of a GPU, where it keeps other tensors for the backward pass.

    Attention runs in the kernel that takes a bias with gradients, dropout keeps bytes, norms of autocast are float32.
    """
    plain_norm = F.layer_norm

    def layer_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return plain_norm(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)

    # A TorchFunctionMode would not be there when the backward pass computes layers anew.
    replaced = {"scaled_dot_product_attention": _attention, "dropout": _dropout, "layer_norm": layer_norm}
    plain = {name: getattr(F, name) for name in replaced}
    try:
        for name, function in replaced.items():
            setattr(F, name, function)
        yield
    finally:
        for name, function in plain.items():
            setattr(F, name, function)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, scale: float | None = None
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        attn_mask = None if attn_mask is None else attn_mask.to(dtype)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*q.shape[:-1], k.size(-2))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, attn_mask, torch.is_grad_enabled(), dropout_p, False, scale=scale
    )[0]
