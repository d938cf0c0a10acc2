"""Decoding of token trees: after its prompt every sample has many continuations that share their beginnings."""

import math

import torch
from torch import Tensor

from models.ofa.decoder import Decoder
from models.ofa.encoder import EncoderOutput


class TreeState:
    """Prompts that have been read, and the tree nodes fed after them; a node sees the prompt, ancestors and itself.

    A depth counts from the prompt: its last token has depth 0, the tokens that may follow it depth 1.

    Args:
        decoder: the model's decoder, for text. enc: output of the encoder for the B samples.
        prompts: (B, P) ids, each beginning with bos, right-padded. lengths: (1 or B,) ids of each without padding.
        depth: depth of the deepest node that will be fed.

    Attributes:
        root: (B, C) features of each prompt's last token.

    Raises:
        ValueError: the longest prompt and `depth` more tokens exceed the positions the model has.
    """

    def __init__(self, decoder: Decoder, enc: EncoderOutput, prompts: Tensor, lengths: Tensor, depth: int) -> None:
        self.decoder, self.prompt_length, self.depth = decoder, prompts.size(1), depth
        self.state = decoder.start(enc, 1, prompts.size(1) + depth)
        features = decoder.step(prompts, self.state)
        self.root = features[torch.arange(prompts.size(0), device=prompts.device), lengths - 1]
        self.lengths = lengths
        self.rewind()

    def rewind(self) -> None:
        """Forgets all nodes; the prompts stay."""
        for cache in self.state.layers:
            cache.length = self.prompt_length
        slots = torch.arange(self.prompt_length, device=self.lengths.device)[None]
        self.positions = slots  # (1 or B, T) of the prompts' tokens, then of nodes in the order they were fed
        self.in_prompt = slots < self.lengths[:, None]  # (1 or B, P)

    def extend(self, tokens: Tensor, depths: Tensor, visible: Tensor) -> Tensor:
        """Feeds m nodes of each sample; the first dimension is 1 where samples do not differ.

        Args:
            tokens, depths: (1 or B, m). visible: (1 or B, m, T), which of all nodes fed, these included, each one sees.

        Returns:
            features (B, m, C).
        """
        positions = self.lengths[:, None] - 1 + depths
        A, m = max(positions.size(0), self.positions.size(0)), positions.size(1)
        self.positions = torch.cat([self.positions.expand(A, -1), positions.expand(A, -1)], dim=1)
        seen = torch.cat([self.in_prompt[:, None].expand(A, m, -1), visible.expand(A, -1, -1)], dim=2)  # (A, m, P + T)
        self_biases, cross_bias = self.state.positions.rows(0, self.prompt_length + self.depth)
        forbidden = torch.zeros_like(seen, dtype=cross_bias.dtype).masked_fill_(~seen, -math.inf).unsqueeze(1)
        at = self.lengths[:, None] - 1 + torch.arange(self.depth + 1, device=depths.device)  # position of each depth
        x = self.decoder.embed(tokens, positions, False).expand(self.root.size(0), -1, -1)
        return self.decoder.extend(
            x,
            (_by_depth(_self_rows(bias, at, self.positions), depths) + forbidden for bias in self_biases),
            _by_depth(_cross_rows(cross_bias, at), depths),
            self.state,
        )

    def keep_samples(self, samples: Tensor) -> None:
        """Goes on with some samples only (1-D indices), in that order."""
        self.state.keep_samples(samples)
        self.root = self.root[samples]
        if self.lengths.size(0) > 1:
            self.lengths, self.in_prompt = self.lengths[samples], self.in_prompt[samples]
        if self.positions.size(0) > 1:
            self.positions = self.positions[samples]


# Few nodes differ in depth: a bias is looked up once per depth, then whole rows are copied to the nodes.


def _self_rows(bias: Tensor, at: Tensor, positions: Tensor) -> Tensor:
    """Rows at (1 or A, n) and columns positions (A, K) of a bias (1, H, T, T) -> (A, n, H, K)."""
    return bias[0][:, at[:, :, None], positions[:, None]].permute(1, 2, 0, 3)


def _cross_rows(bias: Tensor, at: Tensor) -> Tensor:
    """Rows at (1 or B, n) of a bias (1 or B, H, T, S) -> (1 or B, n, H, S)."""
    samples = max(bias.size(0), at.size(0))
    return bias.expand(samples, -1, -1, -1)[torch.arange(samples, device=at.device)[:, None], :, at]


def _by_depth(rows: Tensor, depths: Tensor) -> Tensor:
    """Rows of each depth (1 or A, n, H, K), depths of nodes (1 or A, m) -> (1 or A, H, m, K)."""
    samples, n = rows.shape[:2]
    index = torch.arange(samples, device=depths.device)[:, None] * n + depths
    return rows.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
