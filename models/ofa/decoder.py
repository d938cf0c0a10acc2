"""The decoder: text or image codes, attending to the encoder's output; whole sequences or step by step."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ofa.cache import DecoderState, LayerCache, SlotCache
from models.ofa.config import OFAConfig
from models.ofa.encoder import EncoderOutput
from models.ofa.layers import DecoderLayer
from models.ofa.positions import MAX_TEXT, DecoderPositions, PositionTables, grid_ids
from models.ofa.recompute import run_layer

# Position id of code positions beyond the grid, and how many the table holds.
BEYOND_GRID_ID, BEYOND_GRID = 1024, 769


def code_position_ids(window: int, side: int) -> Tensor:
    """Position id of each decoder position of a code sequence, (1 + window^2 + 769,): bos, the grid, a constant."""
    beyond = torch.full((BEYOND_GRID,), BEYOND_GRID_ID)
    return torch.cat([torch.zeros(1, dtype=torch.long), grid_ids(window, window, side), beyond])


class Decoder(PositionTables):
    """Previous tokens and `EncoderOutput` -> features -> logits over the shared token table."""

    image_position_idx: Tensor

    def __init__(self, config: OFAConfig, embed_tokens: nn.Embedding) -> None:
        super().__init__(config, "decoder", config.max_target_positions)
        dim, depth = config.decoder_embed_dim, config.decoder_layers
        self.dropout, self.entangled = config.dropout, not config.disable_entangle
        self.max_positions = config.max_target_positions
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(dim) if config.layernorm_embedding else None
        self.code_layernorm_embedding = nn.LayerNorm(dim) if config.code_layernorm_embedding else None
        self.self_pos_q_linear, self.self_pos_k_linear = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.cross_pos_q_linear, self.cross_pos_k_linear = nn.Linear(dim, dim), nn.Linear(dim, dim)
        rates = [config.decoder_drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layers: Sequence[DecoderLayer] = nn.ModuleList(DecoderLayer(config, rate) for rate in rates)  # type: ignore[assignment]
        self.layer_norm = nn.LayerNorm(dim)
        self.output_projection = nn.Linear(dim, config.vocab_size, bias=False)
        self.output_projection.weight = embed_tokens.weight
        self.recompute, self.offload = config.checkpoint_activations, config.offload_activations
        self.register_buffer("image_position_idx", code_position_ids(config.code_window, self.side))

    def forward(self, prev_output_tokens: Tensor, enc: EncoderOutput, code_masks: Tensor | None = None) -> Tensor:
        """Whole sequences: previous tokens (B * G, T), code_masks (B * G,) True = codes -> features (B * G, T, C).

        G sequences of each sample of `enc`, in consecutive rows, share its keys and values. Padding must be on the
        right: the causal mask then keeps it from every real position.
        """
        rows, B = prev_output_tokens.size(0), enc.out.size(0)
        if rows % B:
            raise ValueError(f"{rows} sequences for {B} encoded samples: give every sample the same number.")
        code = _constant(code_masks)
        x, self_biases, cross_bias = self._inputs(prev_output_tokens, enc, bool(code))
        if code is None:  # text and codes in one batch: each sample takes its own
            x_code, code_biases, code_cross_bias = self._inputs(prev_output_tokens, enc, True)
            pick = code_masks.view(-1, 1, 1, 1)  # type: ignore[union-attr]
            x = torch.where(pick[..., 0], x_code, x)
            self_biases = [torch.where(pick, c, t) for c, t in zip(code_biases, self_biases, strict=True)]
            cross_bias = torch.where(pick, code_cross_bias, cross_bias)
        padding = enc.padding()
        x = F.dropout(x, self.dropout, self.training)
        for layer, self_bias in zip(self.layers, self_biases, strict=True):
            memory = layer.memory(enc.out, padding)
            x = run_layer(layer, x, self_bias, memory, cross_bias, recompute=self.recompute, offload=self.offload)
        return self.layer_norm(x)

    def _inputs(self, tokens: Tensor, enc: EncoderOutput, code: bool) -> tuple[Tensor, list[Tensor], Tensor]:
        T = tokens.size(1)
        self_biases, cross_bias = self.positions(enc, T, code).rows(0, T)
        return self.embed(tokens, slice(T), code), self_biases, cross_bias

    def start(
        self, enc: EncoderOutput, groups: int, capacity: int, code: bool = False, slots: int | None = None
    ) -> DecoderState:
        """State for decoding up to `capacity` positions of `groups` rows per sample, step by step.

        slots: keys and values of so many slots are kept, at fixed addresses (`SlotCache`).
        """
        padding = enc.padding()
        memory = [layer.memory(enc.out, padding) for layer in self.layers]
        rows, head_dim = enc.out.size(0) * groups, enc.out.size(2) // self.heads
        like = memory[0][0]
        kind, size = (LayerCache, capacity) if slots is None else (SlotCache, slots)
        caches = [kind(rows, self.heads, size, head_dim, like) for _ in self.layers]
        return DecoderState(memory, caches, self.positions(enc, capacity, code), code)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Next tokens (B * G, n) after those in `state` -> features (B * G, n, C); `state` grows by n positions."""
        first, last = state.length, state.length + tokens.size(1)
        self_biases, cross_bias = state.positions.rows(first, last)
        return self.extend(self.embed(tokens, slice(first, last), state.code), self_biases, cross_bias, state)

    def extend(self, x: Tensor, self_biases: Iterable[Tensor], cross_bias: Tensor, state: DecoderState) -> Tensor:
        """Embedded positions x (B * G, n, C) -> features (B * G, n, C); their keys and values are added to `state`.

        Args:
            self_biases: per layer, (1 or B or B * G, H, n, T), T = positions in `state` and new ones; -inf forbids.
            cross_bias: (1 or B, H, n, S).
        """
        shape, x = x.shape, x.reshape(-1, x.size(2))  # half as many operators: products know matrices only
        for layer, bias, memory, cache in zip(self.layers, self_biases, state.memory, state.layers, strict=True):
            x = layer(x, bias, memory, cross_bias, cache)
        return self.layer_norm(x).view(shape)

    def positions(self, enc: EncoderOutput, length: int, code: bool) -> DecoderPositions:
        """Position biases of decoder positions 0..length-1 against themselves and the encoder's positions.

        Raises ValueError when the tables have no such positions.
        """
        self._check_length(length, code)
        ids = self.image_position_idx[:length]
        embedded = self._position_embeddings(slice(length), code)
        own = (self.image_pos_ln if code else self.pos_ln)(embedded)[None]  # (1, T, C)

        def relative(first: int, last: int) -> list[Tensor]:
            return self.image_bias(ids[first:last], ids[:last]) if code else self.token_bias(first, last, last)

        return DecoderPositions(
            self.position_heads(self.self_pos_q_linear, own, self.position_scale),
            self.position_heads(self.self_pos_k_linear, own),
            self.position_heads(self.cross_pos_q_linear, own, self.position_scale),
            self.position_heads(self.cross_pos_k_linear, enc.positions),
            relative,
        )

    def max_length(self, code: bool) -> int:
        """Positions that the tables have, begin of sentence included."""
        if code:
            return min(self.image_position_idx.numel(), self.embed_positions.num_embeddings)
        return min(MAX_TEXT, self.max_positions)

    def _check_length(self, length: int, code: bool) -> None:
        limit = self.max_length(code)
        if length > limit:
            kind = "image codes" if code else "text tokens"
            flag = "--code-image-size" if code else "--max-tgt-length or --max-len-b"
            raise ValueError(
                f"A target of {length} {kind} (begin of sentence included) is longer than the {limit} positions the "
                f"model has: shorten it ({flag})."
            )

    def _position_embeddings(self, positions: slice | Tensor, code: bool) -> Tensor:
        """Raw embeddings (.., C) of decoder positions."""
        if code:
            return self.embed_image_positions(self.image_position_idx[positions])
        return self.embed_positions.weight[positions]

    def embed(self, tokens: Tensor, positions: slice | Tensor, code: bool) -> Tensor:
        """Tokens (B, n) at positions, a slice or (B, n) -> (B, n, C)."""
        x = self.embed_tokens(tokens)
        if self.entangled:
            x = x + self._position_embeddings(positions, code)
        norm = self.layernorm_embedding
        if code and self.code_layernorm_embedding is not None:
            norm = self.code_layernorm_embedding
        return x if norm is None else norm(x)


def _constant(code_masks: Tensor | None) -> bool | None:
    """The value all code masks share (False without masks), or None when they differ."""
    if code_masks is None or not bool(code_masks.any()):
        return False
    return True if bool(code_masks.all()) else None
