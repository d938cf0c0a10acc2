"""Relative-position buckets, position tables, and the attention biases made of them.

A bias does not depend on what is attended, only on where: (1, H, T, S), shared by all samples of a batch.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ofa.attention import split_heads
from models.ofa.config import OFAConfig

# Text positions for which relative buckets exist, whatever the length limits are.
MAX_TEXT = 1024


def token_buckets(bucket_size: int, length: int = MAX_TEXT) -> Tensor:
    """Bucket of query i and key j, (length, length): exact near the diagonal, logarithmic beyond bucket_size / 2."""
    near = bucket_size // 2
    distance = torch.arange(1 - length, length)
    far = torch.log(distance.abs().clamp(min=near).double() / near) / math.log((length - 1) / near) * (near - 1)
    logarithmic = distance.sign() * (far.ceil().long() + near)
    buckets = torch.where(distance.abs() <= near, distance, logarithmic) + bucket_size - 1
    return buckets.unfold(0, length, 1).flip(1)  # row i holds the distances i, i - 1, ... to the keys 0, 1, ...


def image_buckets(side: int) -> Tensor:
    """Bucket of two image position ids, (side^2 + 1, side^2 + 1): one per offset in rows and columns.

    Id r * side + c + 1 is cell (r, c); id 0 is the decoder's begin of sentence, with three buckets of its own.
    """
    span = 2 * side - 1
    places = torch.arange(side * side) // side * span + torch.arange(side * side) % side
    table = torch.empty(side * side + 1, side * side + 1, dtype=torch.long)
    torch.sub(places[:, None] + (side - 1) * (span + 1), places, out=table[1:, 1:])
    table[0, 1:], table[1:, 0], table[0, 0] = span * span, span * span + 1, span * span + 2
    return table


def grid_ids(height: int, width: int, side: int, device: torch.device | None = None) -> Tensor:
    """Position ids (height * width,) of a grid's cells row by row; the stride is `side`, whatever the width."""
    rows = torch.arange(height, device=device)[:, None] * side
    return (rows + torch.arange(width, device=device) + 1).flatten()


class PositionTables(nn.Module):
    """Position embeddings and per-layer relative tables that the encoder and the decoder both have."""

    token_rp_bucket: Tensor
    image_rp_bucket: Tensor

    def __init__(self, config: OFAConfig, side: str, max_positions: int) -> None:
        super().__init__()
        dim: int = getattr(config, f"{side}_embed_dim")
        layers: int = getattr(config, f"{side}_layers")
        self.heads: int = getattr(config, f"{side}_attention_heads")
        self.side = config.image_bucket_size
        self.position_scale = (dim / self.heads * config.attn_scale_factor) ** -0.5
        self.embed_positions = nn.Embedding(max_positions + 2, dim)
        self.embed_image_positions = nn.Embedding(self.side**2 + 1, dim)
        self.pos_ln, self.image_pos_ln = nn.LayerNorm(dim), nn.LayerNorm(dim)
        token_rows, image_rows = 2 * config.token_bucket_size - 1, (2 * self.side - 1) ** 2 + 3
        self.token_rel_pos_table_list = nn.ModuleList(nn.Embedding(token_rows, self.heads) for _ in range(layers))
        self.image_rel_pos_table_list = nn.ModuleList(nn.Embedding(image_rows, self.heads) for _ in range(layers))
        self.register_buffer("version", torch.tensor([3.0]))
        self.register_buffer("token_rp_bucket", token_buckets(config.token_bucket_size))
        self.register_buffer("image_rp_bucket", image_buckets(self.side))

    def token_bias(self, first: int, last: int, keys: int) -> list[Tensor]:
        """Per layer, relative bias (1, H, last - first, keys) of text queries first..last-1."""
        buckets = self.token_rp_bucket[first:last, :keys]
        return [_lookup(table, buckets) for table in self.token_rel_pos_table_list]

    def image_bias(self, query_ids: Tensor, key_ids: Tensor) -> list[Tensor]:
        """Per layer, relative bias (1 or B, H, T, S) of image ids (T,) or (B, T) against (S,) or (B, S)."""
        buckets = self.image_rp_bucket[query_ids.unsqueeze(-1), key_ids.unsqueeze(-2)]
        return [_lookup(table, buckets) for table in self.image_rel_pos_table_list]

    def position_heads(self, linear: nn.Module, positions: Tensor, scale: float = 1.0) -> Tensor:
        """Projected positions (B, S, C) -> (B, H, S, D), times `scale`."""
        return split_heads(linear(positions) * scale, self.heads)


def _lookup(table: nn.Module, buckets: Tensor) -> Tensor:
    """Table rows (.., H) of buckets ([B,] T, S) -> (1 or B, H, T, S)."""
    bias = F.embedding(buckets, table.weight).movedim(-1, -3)  # type: ignore[arg-type]
    return bias if bias.dim() == 4 else bias.unsqueeze(0)


class DecoderPositions:
    """Self- and cross-attention biases of decoder positions, computed a block of rows at a time.

    A step asks for the rows of the positions it decodes; nothing behind them is computed again.

    Args:
        self_q, self_k: projected decoder positions (1, H, T, D). cross_q: (1, H, T, D).
        cross_k: projected encoder positions (1 or B, H, S, D).
        relative: (first, last) -> per layer, relative bias (1, H, last - first, last).
        block: rows computed at once.
    """

    def __init__(
        self,
        self_q: Tensor,
        self_k: Tensor,
        cross_q: Tensor,
        cross_k: Tensor,
        relative: Callable[[int, int], list[Tensor]],
        block: int = 64,
    ) -> None:
        self.self_q, self.self_k, self.cross_q, self.cross_k = self_q, self_k, cross_q, cross_k
        self.relative, self.block = relative, block
        self._first = self._last = 0
        self._self_bias: list[Tensor] = []
        self._cross_bias = cross_k

    def rows(self, first: int, last: int) -> tuple[list[Tensor], Tensor]:
        """Biases of query positions first..last-1.

        Returns:
            per layer, self-attention bias (1, H, last - first, last) with the causal mask in it;
            cross-attention bias (1 or B, H, last - first, S).
        """
        if not self._first <= first < last <= self._last:
            self._compute(first, max(last, min(first + self.block, self.self_q.size(2))))
        span = slice(first - self._first, last - self._first)
        return [bias[:, :, span, :last] for bias in self._self_bias], self._cross_bias[:, :, span]

    def _compute(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        absolute = self.self_q[:, :, first:last] @ self.self_k[:, :, :last].transpose(-1, -2)
        future = torch.ones(last - first, last, dtype=torch.bool, device=absolute.device).triu(first + 1)
        absolute = absolute.masked_fill(future, -math.inf)
        self._self_bias = [absolute + relative for relative in self.relative(first, last)]
        self._cross_bias = self.cross_q[:, :, first:last] @ self.cross_k.transpose(-1, -2)

    def keep_samples(self, samples: Tensor) -> None:
        """Keeps the biases of some samples (1-D indices), where samples differ at all."""
        if self.cross_k.size(0) > 1:
            self.cross_k = self.cross_k.index_select(0, samples)
            self._cross_bias = self._cross_bias.index_select(0, samples)


class BiasBlock:
    """Rows of `DecoderPositions`, all layers in one tensor that stays at its address: a step picks its own by index.

    Attributes:
        size: rows that are ready at once.
    """

    def __init__(self, positions: DecoderPositions, size: int = 64) -> None:
        self._positions, self._first, self._last = positions, 0, 0
        self.size = min(size, positions.self_q.size(2))
        self._self_bias: Tensor | None = None
        self._offset = torch.zeros(1, dtype=torch.long, device=positions.self_q.device)

    def prepare(self, position: int) -> None:
        """Makes the rows of a position and those that follow ready, unless they are."""
        if self._first <= position < self._last:
            return
        length = self._positions.self_q.size(2)
        self._first, self._last = position, min(position + self.size, length)
        self._offset.fill_(position)
        self_bias, cross_bias = self._positions.rows(self._first, self._last)
        n = self._last - self._first
        if self._self_bias is None:
            shape = (len(self_bias), *self_bias[0].shape[:2], self.size, length)
            self._self_bias = self_bias[0].new_full(shape, -math.inf)
            self._cross_bias = cross_bias.new_zeros(*cross_bias.shape[:2], self.size, cross_bias.size(3))
        for layer, bias in zip(self._self_bias, self_bias, strict=True):
            layer[:, :, :n, : self._last] = bias
        self._cross_bias[:, :, :n] = cross_bias

    def rows(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Position (1,) -> self-attention biases (layers, 1, H, 1, length), -inf behind it, and (1 or B, H, 1, S)."""
        assert self._self_bias is not None
        index = position - self._offset
        return self._self_bias.index_select(3, index), self._cross_bias.index_select(2, index)

    def keep_samples(self, samples: Tensor) -> None:
        """Goes on with some samples only (1-D indices), after `DecoderPositions.keep_samples`."""
        if self._self_bias is not None and self._cross_bias.size(0) > 1:
            self._cross_bias = self._cross_bias.index_select(0, samples)
