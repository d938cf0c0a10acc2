"""Tokens, image patches, positions and types -> one encoder input sequence."""

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ofa.config import VIT, OFAConfig
from models.ofa.positions import PositionTables, grid_ids
from models.ofa.resnet import STRIDE, ResNet
from models.ofa.vit import ViT
from utils.constants import PAD


@dataclass
class Patches:
    """Image patches of a batch as the encoder takes them: P patches of one image per sample.

    Attributes:
        embedded: (B, P, C). padding: (B, P), True where the sample has no image.
        ids: position ids (P,), or (B, P) when each sample holds another choice of patches.
        positions: absolute position embeddings (1 or B, P, C), before the norm.
    """

    embedded: Tensor
    padding: Tensor
    ids: Tensor
    positions: Tensor


class EncoderEmbedding(PositionTables):
    """The encoder's input: image 2, image 1, text, in this order."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config, "encoder", config.max_source_positions)
        dim = config.encoder_embed_dim
        self.dropout = config.dropout
        self.entangled = config.entangle_position_embedding
        self.interpolate, self.original_side = config.interpolate_position, config.orig_patch_image_size // STRIDE
        self.embed_tokens = nn.Embedding(config.vocab_size, dim, padding_idx=PAD)
        self.layernorm_embedding = nn.LayerNorm(dim) if config.layernorm_embedding else None
        self.type_embedding = nn.Embedding(1 + max(config.num_images, 1), dim) if config.add_type_embedding else None
        self.embed_images: ResNet | ViT = ViT(config) if config.resnet_type == VIT else ResNet(config)
        self.image_proj = nn.Linear(self.embed_images.channels, dim)
        self.patch_layernorm_embedding = nn.LayerNorm(dim) if config.patch_layernorm_embedding else None

    def embed_text(self, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Token ids (B, L) -> (B, L, C); `embeddings` (B, L, C) replaces the table lookup."""
        x = self.embed_tokens(tokens) if embeddings is None else embeddings
        if self.entangled:
            x = x + self.embed_positions.weight[: tokens.size(1)]
        return self._finish(x, 0, self.layernorm_embedding)

    def embed_patches(
        self,
        images: Tensor,
        masks: Tensor,
        image_index: int,
        sample_patch_num: int | None = None,
        patch_generator: random.Random | None = None,
        image_rows: Tensor | None = None,
    ) -> Patches:
        """Pixels (B, 3, R, R') -> patches; masks (B,), False = the sample has no image.

        Args:
            image_index: 1 for the first image, 2 for the second (its type embedding).
            sample_patch_num, patch_generator, image_rows: see `OFA.encode`.
        """
        height, width = self._checked_grid(images)
        features = self.embed_images(images).flatten(2).transpose(1, 2)  # (B, P, 1024 or 768)
        if image_rows is not None:
            features = features.index_select(0, image_rows)
        ids = grid_ids(height, width, self.side, images.device)
        positions = self._patch_positions(ids, height, width)[None]  # (1, P, C)
        if sample_patch_num is not None:
            rows = choose_patches(features.size(0), ids.numel(), sample_patch_num, patch_generator)
            chosen = torch.tensor(rows, device=images.device)
            features = features.gather(1, chosen.unsqueeze(-1).expand(-1, -1, features.size(-1)))
            ids, positions = ids[chosen], positions[0, chosen]  # (B, k), (B, k, C)
        x = self.image_proj(features)
        if self.entangled:
            x = x + positions
        x = self._finish(x, image_index, self.patch_layernorm_embedding)
        padding = ~masks.to(torch.bool).view(-1, 1).expand(-1, x.size(1))
        return Patches(x, padding, ids, positions)

    def _finish(self, x: Tensor, kind: int, norm: nn.LayerNorm | None) -> Tensor:
        """Adds the type embedding, normalizes and drops out."""
        if self.type_embedding is not None:
            # A model built for one image has two rows: its second image counts as an image like the first.
            x = x + self.type_embedding.weight[min(kind, self.type_embedding.num_embeddings - 1)]
        if norm is not None:
            x = norm(x)
        return F.dropout(x, self.dropout, self.training)

    def _checked_grid(self, images: Tensor) -> tuple[int, int]:
        height, width = self.embed_images.grid(*images.shape[-2:])
        if min(height, width) < 1:
            raise ValueError(f"An image of {images.size(-2)}x{images.size(-1)} pixels has no patch: resize it.")
        if max(height, width) > self.side:
            raise ValueError(
                f"An image of {images.size(-2)}x{images.size(-1)} pixels makes {height}x{width} patches; the model "
                f"has positions for {self.side}x{self.side} ({self.side * STRIDE} pixels a side): resize it."
            )
        return height, width

    def _patch_positions(self, ids: Tensor, height: int, width: int) -> Tensor:
        """Absolute position embeddings (P, C) of a grid, interpolated from the original one where asked."""
        original = self.original_side
        if not self.interpolate or ids.numel() <= original**2:
            return self.embed_image_positions(ids)
        grid = self.embed_image_positions(grid_ids(original, original, self.side, ids.device))
        grid = grid.t().unflatten(1, (original, original))[None]  # (1, C, o, o)
        return F.interpolate(grid, size=(height, width), mode="bilinear")[0].flatten(1).t()


def choose_patches(rows: int, patches: int, count: int, generator: random.Random | None = None) -> list[list[int]]:
    """For each row, `count` distinct numbers below `patches` in random order; ValueError if there are not so many.

    None draws from Python's global generator.
    """
    sample = random.sample if generator is None else generator.sample
    if count > patches:
        raise ValueError(f"--sample-patch-num {count} is more than the {patches} patches of the image.")
    return [sample(range(patches), count) for _ in range(rows)]
