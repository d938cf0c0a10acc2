"""The encoder, the first and the next step of the decoder as modules with tensors in and tensors out.

Shapes: B samples, R rows (B samples, or B * K beams with the memory repeated), L source tokens, S encoder positions,
P tokens of the prompt, T positions decoded so far, N decoder layers, H heads, D head width, V token ids.
"""

import torch
from torch import Tensor, nn

from models.ofa import OFA
from models.ofa.cache import DecoderState, LayerCache
from models.ofa.encoder import EncoderOutput
from models.ofa.positions import DecoderPositions


class ExportedEncoder(nn.Module):
    """Text and an image -> what the decoder attends to. No position is left out: padding is masked."""

    def __init__(self, model: OFA) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, src_tokens: Tensor, patch_images: Tensor, patch_masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """src_tokens (B, L), patch_images (B, 3, R, R), patch_masks (B,) False = no image.

        Returns:
            encoded (B, S, C), padding_mask (B, S) True = padding, positions (1, S, C).
        """
        enc = self.encoder(src_tokens, patch_images, patch_masks)
        return enc.out, enc.padding_mask, enc.positions


class _Cache(LayerCache):
    """A cache that grows by concatenation: a program has no memory to write to in place."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.fused = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As in `LayerCache`."""
        self.keys, self.values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        return self.keys, self.values


class _Decoder(nn.Module):
    """The decoder with its positions projected, which depends on weights only.

    Args:
        model: in eval mode. code: image codes are decoded, not text.
    """

    def __init__(self, model: OFA, code: bool) -> None:
        super().__init__()
        self.decoder, self.code, self.limit = model.decoder, code, model.decoder.max_length(code)
        with torch.no_grad():
            table = self.decoder.embed_positions.weight
            nothing = EncoderOutput(table[None, :1], torch.zeros(1, 1, dtype=torch.bool), table[None, :1], False)
            positions = self.decoder.positions(nothing, self.limit, code)
        self._relative = positions.relative
        for name in ("self_q", "self_k", "cross_q"):  # (1, H, limit, D)
            self.register_buffer(name, getattr(positions, name).clone())

    def _step(
        self,
        tokens: Tensor,
        first: int,
        past: list[Tensor],
        memory: list[Tensor],
        memory_positions: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens (R, n) at positions from `first` on -> logits (R, n, V), keys and values of all positions."""
        q, k, cross_q = (getattr(self, name) for name in ("self_q", "self_k", "cross_q"))
        last = first + tokens.size(1)
        positions = DecoderPositions(q, k, cross_q, memory_positions, self._relative, block=1)
        self_biases, cross_bias = positions.rows(first, last)
        caches = [_Cache(*pair) for pair in zip(past[::2], past[1::2], strict=True)]
        state = DecoderState(list(zip(memory[::2], memory[1::2], strict=True)), [*caches], positions, self.code)
        x = self.decoder.embed(tokens, slice(first, last), self.code)
        features = self.decoder.extend(x, self_biases, cross_bias, state)
        return self.decoder.output_projection(features), [x for cache in caches for x in (cache.keys, cache.values)]


class FirstStep(_Decoder):
    """A prompt, after what the encoder returned."""

    def forward(
        self, tokens: Tensor, encoded: Tensor, padding_mask: Tensor, positions: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
        """Tokens (B, P) begin with bos, and all rows have P; the others are the encoder's outputs.

        Returns:
            logits (B, P, V). Keys and values of each layer in turn, N times two: of the tokens (B, H, P, D), and of
            the encoder's output (B, H, S, D + 8), padding folded in. Its projected positions (1, H, S, D).
        """
        memory = [x for layer in self.decoder.layers for x in layer.memory(encoded, padding_mask)]
        memory_positions = self.decoder.position_heads(self.decoder.cross_pos_k_linear, positions)
        shape = tokens.size(0), self.decoder.heads, 0, encoded.size(2) // self.decoder.heads
        past = [encoded.new_zeros(shape) for _ in memory]
        logits, past = self._step(tokens, 0, past, memory, memory_positions)
        return logits, past, memory, memory_positions


class NextStep(_Decoder):
    """One more token of each row, after what the step before returned."""

    def forward(
        self, tokens: Tensor, past: list[Tensor], memory: list[Tensor], memory_positions: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens (R, 1), past (R, H, T, D) and memory (R, H, S, D + 8) as `FirstStep` returned them.

        Returns:
            logits (R, 1, V), keys and values (R, H, T + 1, D) of each layer.
        """
        return self._step(tokens, past[0].size(2), past, memory, memory_positions)
