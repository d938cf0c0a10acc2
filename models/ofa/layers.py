"""Feed-forward block, encoder layer and decoder layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ofa.attention import MultiheadAttention
from models.ofa.cache import LayerCache
from models.ofa.config import OFAConfig
from models.ofa.drop_path import DropPath


class _Residual(nn.Module):
    """What both kinds of (pre-norm) layer share: dimensions, residual branches, the feed-forward block."""

    def __init__(self, config: OFAConfig, side: str, drop_path: float) -> None:
        super().__init__()
        self.dim: int = getattr(config, f"{side}_embed_dim")
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout
        self.drop_path = DropPath(drop_path)
        ffn_dim: int = getattr(config, f"{side}_ffn_embed_dim")
        self.fc1 = nn.Linear(self.dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, self.dim)
        self.ffn_layernorm = nn.LayerNorm(ffn_dim) if config.scale_fc else None
        self.w_resid = nn.Parameter(torch.ones(self.dim)) if config.scale_resids else None
        self.final_layer_norm = nn.LayerNorm(self.dim)

    def _attention(self, config: OFAConfig, side: str) -> MultiheadAttention:
        heads = getattr(config, f"{side}_attention_heads")
        return MultiheadAttention(
            self.dim, heads, config.attn_scale_factor, config.attention_dropout, config.scale_heads
        )

    def _mid_norm(self, config: OFAConfig) -> nn.LayerNorm | None:
        return nn.LayerNorm(self.dim) if config.scale_attn else None

    def _add(self, residual: Tensor, branch: Tensor, mid_norm: nn.LayerNorm | None) -> Tensor:
        """residual + drop path(dropout(norm(branch)))."""
        if mid_norm is not None:
            branch = mid_norm(branch)
        return residual + self.drop_path(F.dropout(branch, self.dropout, self.training))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Residual feed-forward block, (B, T, C) -> (B, T, C); gelu in float32."""
        residual = x
        hidden = self.fc1(self.final_layer_norm(x))
        hidden = F.gelu(hidden.float()).type_as(hidden)
        hidden = F.dropout(hidden, self.activation_dropout, self.training)
        if self.ffn_layernorm is not None:
            hidden = self.ffn_layernorm(hidden)
        if self.w_resid is not None:
            residual = residual * self.w_resid
        return self._add(residual, self.fc2(hidden), None)


class EncoderLayer(_Residual):
    """Self-attention with position bias, then feed-forward."""

    def __init__(self, config: OFAConfig, drop_path: float) -> None:
        super().__init__(config, "encoder", drop_path)
        self.self_attn = self._attention(config, "encoder")
        self.self_attn_layer_norm = nn.LayerNorm(self.dim)
        self.attn_ln = self._mid_norm(config)

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """x (B, S, C), bias (1 or B, H, S, S), padding (B, S) or None -> (B, S, C)."""
        hidden = self.self_attn_layer_norm(x)
        x = self._add(x, self.self_attn(hidden, *self.self_attn.keys_values(hidden, padding), bias), self.attn_ln)
        return self.feed_forward(x)


class DecoderLayer(_Residual):
    """Causal self-attention, attention to the encoder's output, feed-forward."""

    def __init__(self, config: OFAConfig, drop_path: float) -> None:
        super().__init__(config, "decoder", drop_path)
        self.self_attn = self._attention(config, "decoder")
        self.self_attn_layer_norm = nn.LayerNorm(self.dim)
        self.self_attn_ln = self._mid_norm(config)
        self.encoder_attn = self._attention(config, "decoder")
        self.encoder_attn_layer_norm = nn.LayerNorm(self.dim)
        self.cross_attn_ln = self._mid_norm(config)

    def memory(self, encoded: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """This layer's keys and values (B, H, S, D) of the encoder's output (B, S, C), padding (B, S) folded in."""
        return self.encoder_attn.keys_values(encoded, padding)

    def forward(
        self,
        x: Tensor,
        self_bias: Tensor,
        memory: tuple[Tensor, Tensor],
        cross_bias: Tensor,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B * G, T, C), or with a cache (B * G * T, C), -> the same shape.

        Args:
            self_bias: (1 or B, H, T, T'), T' = cached and new positions; holds the causal mask.
            memory: keys and values of the encoder's output, (B, H, S, D).
            cross_bias: (1 or B, H, T, S).
            cache: earlier positions' keys and values; the new ones are appended.
        """
        hidden = self.self_attn_layer_norm(x)
        rows = x.size(0) if cache is None or x.dim() == 3 else cache.keys.size(0)
        q, keys, values = self.self_attn.project(hidden, rows, None if cache is None else cache.fused)
        if cache is not None:
            keys, values = cache.append(keys, values)
        x = self._add(x, self.self_attn.answer(q, keys, values, self_bias, x.shape), self.self_attn_ln)
        hidden = self.encoder_attn_layer_norm(x)
        x = self._add(x, self.encoder_attn(hidden, *memory, cross_bias, rows), self.cross_attn_ln)
        return self.feed_forward(x)
