"""The encoder's position biases, kept between batches for as long as the weights they are made of stay the same."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Largest total size of the biases kept (bytes).
MAX_BYTES = 2**30

# Per layer, a bias (1, H, S, S); and the normalized positions (1, S, C).
Biases = tuple[list[Tensor], Tensor]


@dataclass
class _Seen:
    """A weight as it was when the cache began.

    Attributes:
        alias: shares the weight's memory, which therefore cannot be reused for another tensor.
        version: PyTorch's count of in-place changes; None for inference tensors, which have no count.
        content: a copy; None for tables of indices, which are large and constant.
    """

    alias: Tensor
    version: int | None
    content: Tensor | None

    @classmethod
    def of(cls, weight: Tensor) -> "_Seen":
        weight = weight.detach()
        return cls(weight, _version(weight), weight.clone() if weight.is_floating_point() else None)

    def traced(self, weight: Tensor) -> bool:
        """Whether the weight is another tensor or counts changes since."""
        same = (weight.data_ptr(), weight.shape, weight.dtype, weight.device, _version(weight))
        return same != (self.alias.data_ptr(), self.alias.shape, self.alias.dtype, self.alias.device, self.version)

    def changed(self, weight: Tensor) -> bool:
        """Whether the weight holds other values."""
        return self.content is not None and not torch.equal(self.content, weight)


class BiasCache:
    """Biases by key (grids, text length), least recently used ones dropped beyond `max_bytes`.

    Weights are compared by memory and version, which costs microseconds. Writes through `param.data` (as fairseq's
    optimizers do) change no version: after `doubt`, values are compared once, too. A copy of a cache is empty.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, Biases] = OrderedDict()
        self._seen: list[_Seen] = []
        self._doubted = False

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type["BiasCache"], tuple[int]]:
        return BiasCache, (self.max_bytes,)

    def get(self, key: Hashable, weights: Sequence[Tensor], compute: Callable[[], Biases]) -> Biases:
        """The biases of a key; `compute` makes them from `weights` unless these are unchanged since the last time."""
        if self._stale(weights):
            self.clear()
            self._seen = [_Seen.of(weight) for weight in weights]
        self._doubted = False
        biases = self._entries.pop(key, None) or compute()
        self._entries[key] = biases  # the last one is the one used last
        while len(self._entries) > 1 and self._bytes() > self.max_bytes:
            self._entries.popitem(last=False)
        return biases

    def doubt(self) -> None:
        """Weights may have changed without a trace: the next `get` compares their values."""
        self._doubted = True

    def clear(self) -> None:
        """Forgets all biases."""
        self._entries.clear()
        self._seen = []

    def _stale(self, weights: Sequence[Tensor]) -> bool:
        if len(weights) != len(self._seen):
            return True
        pairs = list(zip(self._seen, weights, strict=True))
        if any(seen.traced(weight) for seen, weight in pairs):
            return True
        return any(seen.changed(weight) for seen, weight in pairs if self._doubted or seen.version is None)

    def _bytes(self) -> int:
        return sum(bias.nbytes for biases, _ in self._entries.values() for bias in biases)


def _version(weight: Tensor) -> int | None:
    return None if weight.is_inference() else weight._version
