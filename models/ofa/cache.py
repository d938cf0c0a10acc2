"""What incremental decoding keeps between steps: keys and values, pre-allocated, and position biases."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ofa.positions import DecoderPositions


class LayerCache:
    """Self-attention keys and values of one decoder layer, (rows, H, capacity, D), filled in place.

    A full cache is doubled.
    """

    def __init__(self, rows: int, heads: int, capacity: int, head_dim: int, like: Tensor) -> None:
        self.keys = like.new_empty(rows, heads, capacity, head_dim)
        self.values = like.new_empty(rows, heads, capacity, head_dim)
        self.length = 0
        self.fused: tuple[Tensor, Tensor] | None = None  # see `MultiheadAttention.fused`

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values (rows, H, T, D) of T new positions; returns those of all positions so far."""
        start, self.length = self.length, self.length + keys.size(2)
        if self.length > self.keys.size(2):
            missing = max(self.length, 2 * start) - self.keys.size(2)
            self.keys, self.values = (F.pad(old, (0, 0, 0, missing)) for old in (self.keys, self.values))
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def reorder(self, rows: Tensor) -> None:
        """Row i continues what row rows[i] held; fewer rows than before shrink the cache."""
        self.keys = self._moved(self.keys, rows)
        self.values = self._moved(self.values, rows)

    def _moved(self, old: Tensor, rows: Tensor) -> Tensor:
        new = old.new_zeros(rows.numel(), *old.shape[1:])
        new[:, :, : self.length] = old[:, :, : self.length].index_select(0, rows)
        return new


class SlotCache(LayerCache):
    """A cache at fixed addresses: after the prompt, steps write where `at` says and see the first `limit` slots."""

    def __init__(self, rows: int, heads: int, capacity: int, head_dim: int, like: Tensor) -> None:
        super().__init__(rows, heads, capacity, head_dim, like)
        self.keys.zero_()  # what is not a number would spoil masked slots
        self.values.zero_()
        self.at: Tensor | None = None  # (K,)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values (rows, H, n, D): of the prompt, then of the K slots `at`."""
        if self.at is None:
            return super().append(keys, values)
        self.keys.index_copy_(2, self.at, keys)
        self.values.index_copy_(2, self.at, values)
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)


@dataclass
class DecoderState:
    """State of incremental decoding for B samples of G rows each (beams, samples), rows of a sample consecutive.

    Attributes:
        memory: per layer, keys and values of the encoder's output (B, H, S, D), read by all G rows of a sample.
        layers: per layer, the self-attention cache.
        positions: position biases of the decoder's queries. code: whether image codes are decoded.
    """

    memory: list[tuple[Tensor, Tensor]]
    layers: list[LayerCache]
    positions: DecoderPositions
    code: bool

    @property
    def length(self) -> int:
        """Number of positions decoded so far."""
        return self.layers[0].length

    def reorder(self, rows: Tensor) -> None:
        """Beams moved: row i continues row rows[i] of the same sample; what belongs to the sample stays."""
        for layer in self.layers:
            layer.reorder(rows)

    def keep_samples(self, samples: Tensor) -> None:
        """Drops finished samples: keeps those of `samples` (1-D indices), in that order, with all their rows."""
        groups = self.layers[0].keys.size(0) // self.memory[0][0].size(0)
        self.memory = [(k.index_select(0, samples), v.index_select(0, samples)) for k, v in self.memory]
        self.positions.keep_samples(samples)
        self.reorder((samples[:, None] * groups + torch.arange(groups, device=samples.device)).flatten())
