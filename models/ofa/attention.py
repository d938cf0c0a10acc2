"""The one attention of the project: `attend`, and the projections around it.

Shapes: B samples, H heads, T queries, S keys, D head width, C = H * D.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Extra head dimensions that carry a key's padding: eight keep fused GPU kernels aligned.
PADDING_DIMS = 8
# Logit of a padded key: far enough below any real logit that its weight is exactly 0, and finite in float16.
PADDED_LOGIT = -30000.0


def split_heads(x: Tensor, heads: int, rows: int | None = None) -> Tensor:
    """(B, T, C), or (B * T, C) with B as `rows`, -> (B, H, T, D)."""
    return x.view(x.size(0) if rows is None else rows, -1, heads, x.size(-1) // heads).transpose(1, 2)


def fold_padding(keys: Tensor, values: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Writes key padding into extra head dimensions, so that no (B, H, T, S) mask has to exist.

    `attend` gives every query a 1 in the first extra dimension; a padded key has `PADDED_LOGIT` there and a real
    key 0. Values grow by zeros because fused kernels want one width.

    Args:
        keys, values: (B, H, S, D). padding: (B, S), True = padding.

    Returns:
        keys and values (B, H, S, D + PADDING_DIMS).
    """
    B, H, S, _ = keys.shape
    extra = keys.new_zeros(B, H, S, PADDING_DIMS)
    logit = torch.zeros_like(padding, dtype=keys.dtype).masked_fill(padding, PADDED_LOGIT)
    extra[..., 0] = logit[:, None]  # (B, 1, S) over heads
    return torch.cat([keys, extra], dim=-1), F.pad(values, (0, PADDING_DIMS))


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0, scale: float = 1.0
) -> Tensor:
    """softmax(scale q k^T + bias) v by PyTorch's fused kernels.

    Rows of one sample may share its keys: q may have G times as many rows as k (G beams, samples or candidates of
    each of the B samples, in consecutive rows); they are folded into the query length, nothing is repeated.

    Args:
        q: (B * G, H, T, D). k, v: (B, H, S, D) or widened by `fold_padding`.
        bias: (1 or B or B * G, H, T, S), added to the logits; -inf forbids. dropout: probability for attention weights.

    Returns:
        (B * G, H, T, D).
    """
    rows, H, T, D = q.shape
    B, _, S, width = k.shape
    groups = rows // B
    if groups > 1:
        q = q.unflatten(0, (B, groups)).transpose(1, 2).flatten(2, 3)  # (B, H, G * T, D)
        if bias is not None:
            bias = _fold_bias(bias, rows, groups)
    if width > D:
        q = torch.cat([q, F.pad(q.new_ones(*q.shape[:-1], 1), (0, width - D - 1))], dim=-1)
    if bias is not None:
        bias = bias.to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    if torch.compiler.is_exporting():  # the strides are one kernel's: a view of them would not fit another's
        out = out.clone(memory_format=torch.contiguous_format)
    if width > D:
        out = out[..., :D]
    if groups > 1:
        out = out.unflatten(2, (groups, T)).transpose(1, 2).flatten(0, 1)  # (B * G, H, T, D)
    return out


def _fold_bias(bias: Tensor, rows: int, groups: int) -> Tensor:
    """(1 or B or B * G, H, T, S) -> (1 or B, H, G * T, S), a view when T = 1 and the bias is shared."""
    if bias.size(0) == rows:
        return bias.unflatten(0, (-1, groups)).transpose(1, 2).flatten(2, 3)
    shared = bias.unsqueeze(2).expand(-1, -1, groups, -1, -1)  # (1 or B, H, G, T, S)
    return shared.flatten(2, 3)


class MultiheadAttention(nn.Module):
    """Query, key, value and output projections, and a learned scale per head.

    Logits are scaled by (D * scale_factor) ** -0.5.
    """

    def __init__(self, dim: int, heads: int, scale_factor: float, dropout: float, scale_heads: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim / heads * scale_factor) ** -0.5
        self.dropout = dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.c_attn = nn.Parameter(torch.ones(heads)) if scale_heads else None

    def keys_values(self, x: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, S, C) -> keys and values (B, H, S, D), widened by `fold_padding` when padding (B, S) is given."""
        keys, values = split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)
        return (keys, values) if padding is None else fold_padding(keys, values, padding)

    def fused(self) -> tuple[Tensor, Tensor] | None:
        """A weight (3C, C) and a bias (3C,) that give queries, keys and values in one product; copies.

        None for other layers than `nn.Linear` (int8 weights).
        """
        parts = (self.q_proj, self.k_proj, self.v_proj)
        if not all(isinstance(part, nn.Linear) for part in parts):
            return None
        return torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])

    def project(
        self, x: Tensor, rows: int | None = None, fused: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C), or (B * T, C) with B as `rows`, -> queries, keys and values (B, H, T, D).

        fused: what `fused` gave, to be used instead of the three projections.
        """
        if fused is None or rows is None:
            q, keys, values = self.q_proj(x), self.k_proj(x), self.v_proj(x)
            heads = self.heads
            return split_heads(q, heads, rows), split_heads(keys, heads, rows), split_heads(values, heads, rows)
        q, keys, values = F.linear(x, *fused).view(rows, -1, 3, self.heads, x.size(-1) // self.heads).unbind(2)
        return q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None, rows: int | None = None
    ) -> Tensor:
        """Queries from x (B * G, T, C) against given keys and values (B, H, S, D) -> (B * G, T, C).

        rows: B * G, where x and what is returned are (B * G * T, C).
        """
        return self.answer(split_heads(self.q_proj(x), self.heads, rows), keys, values, bias, x.shape)

    def answer(self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, shape: torch.Size) -> Tensor:
        """Projected queries (B * G, H, T, D) against keys and values -> (B * G, T, C) in another shape."""
        out = attend(q, keys, values, bias, self.dropout if self.training else 0.0, self.scale)
        if self.c_attn is not None:
            out = out * self.c_attn.view(-1, 1, 1)
        return self.out_proj(out.transpose(1, 2).reshape(shape))
