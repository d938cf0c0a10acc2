"""Step-by-step decoding of beams: what was written stays where it is, and a table says which of it a beam sees.

Shapes: B samples, K beams, P positions of the prompt. Keys and values have a slot for each position of the prompt,
which all beams of a sample share, and K slots for each later position.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ofa.cache import DecoderState, SlotCache
from models.ofa.decoder import Decoder
from models.ofa.encoder import EncoderOutput
from models.ofa.positions import BiasBlock


class BeamState:
    """Decoding of K beams of each of B samples; no step copies what earlier ones wrote.

    Args:
        decoder: the model's. enc: the encoder's output of B samples. prompt: (B, P) tokens, bos first, no padding.
        beams: K. capacity: positions that will be fed, the prompt's included. code: whether image codes are decoded.

    Attributes:
        features: (B, P, C) after the prompt's tokens.

    Raises ValueError when the model has no such positions.
    """

    def __init__(
        self, decoder: Decoder, enc: EncoderOutput, prompt: Tensor, beams: int, capacity: int, code: bool
    ) -> None:
        self.decoder, self.beams, self.prompt_length = decoder, beams, prompt.size(1)
        slots = self.prompt_length + (capacity - self.prompt_length) * beams
        self.state: DecoderState = decoder.start(enc, 1, capacity, code, slots)
        self.features = decoder.step(prompt, self.state)
        device = prompt.device
        later = torch.arange(self.prompt_length, capacity, device=device).repeat_interleave(beams)
        # Position of each slot, and the slots that the next step writes: the same tensors all the time.
        self._positions = torch.cat([torch.arange(self.prompt_length, device=device), later])
        self._position = torch.full((1,), self.prompt_length, device=device)
        self._at = self.prompt_length + torch.arange(beams, device=device)
        self._beam = torch.arange(beams, device=device)
        self.block = BiasBlock(self.state.positions)
        for layer, cache in zip(decoder.layers, self.state.layers, strict=True):
            cast(SlotCache, cache).at = self._at
            cache.fused = layer.self_attn.fused()

    def step(self, tokens: Tensor, seen: Tensor, length: int) -> Tensor:
        """Feeds the next token of each beam.

        Args:
            tokens: (B, K). seen: (B, K, capacity), which beam's slot of a position each beam sees (its ancestor
                then); prompt and later positions may hold anything.
            length: positions to look at, at least those fed so far with this one.

        Returns:
            features (B, K, C).
        """
        limit = self.prompt_length + (length - self.prompt_length) * self.beams
        for cache in self.state.layers:
            cache.length = limit
        self_rows, cross_row = self.block.rows(self._position)
        if self.beams == 1:  # a beam sees its whole past, and the biases hide what is to come
            self_rows = self_rows[..., :limit]
        else:
            self_rows = self_rows[..., self._positions[:limit]] + self._forbidden(seen, length, self_rows.dtype)
        x = self.decoder.embed(tokens, self._position, self.state.code)
        features = self.decoder.extend(x, self_rows.unbind(0), cross_row, self.state)
        self._position += 1
        self._at += self.beams
        return features

    def _forbidden(self, seen: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """(B, 1, K, slots): 0 where a beam sees a slot, else -inf."""
        P = self.prompt_length
        visible = seen[:, :, P:length, None] == self._beam  # (B, K, length - P, K)
        forbidden = visible.to(dtype).log_().flatten(2)  # log 1 = 0, log 0 = -inf
        return F.pad(forbidden, (P, 0)).unsqueeze(1)

    def prepare(self, position: int) -> None:
        """Makes the biases of a position ready; call it before its step, outside whatever is replayed."""
        self.block.prepare(position)

    def keep_samples(self, samples: Tensor) -> None:
        """Goes on with some samples only (1-D indices)."""
        self.state.keep_samples(samples)
        self.block.keep_samples(samples)
