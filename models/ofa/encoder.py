"""The encoder: input sequence, position biases, layers."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.ofa.bias_cache import BiasCache, Biases
from models.ofa.config import OFAConfig
from models.ofa.embedding import EncoderEmbedding, Patches
from models.ofa.layers import EncoderLayer
from models.ofa.positions import MAX_TEXT
from models.ofa.recompute import run_layer
from utils.constants import PAD


@dataclass
class EncoderOutput:
    """What the decoder attends to; image positions come first, then text.

    Attributes:
        out: (B, S, C). padding_mask: (B, S), True = padding.
        positions: normalized position embeddings (1 or B, S, C); 1 when all samples have the same positions.
        padded: whether any position is padding; None if nobody has asked yet, which is a wait for the device.
    """

    out: Tensor
    padding_mask: Tensor
    positions: Tensor
    padded: bool | None = None

    def padding(self) -> Tensor | None:
        """The padding mask, or None if nothing is padding."""
        if self.padded is None:
            self.padded = bool(self.padding_mask.any())
        return self.padding_mask if self.padded else None

    def select(self, samples: Tensor) -> "EncoderOutput":
        """The output of some samples (1-D indices), in that order."""
        positions = self.positions if self.positions.size(0) == 1 else self.positions.index_select(0, samples)
        padded = None if self.padded else self.padded  # of some samples: not if it is not of all
        mask = self.padding_mask.index_select(0, samples)
        return EncoderOutput(self.out.index_select(0, samples), mask, positions, padded)


class Encoder(EncoderEmbedding):
    """Text and images -> `EncoderOutput`."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config)
        dim, depth = config.encoder_embed_dim, config.encoder_layers
        self.max_positions = min(config.max_source_positions, MAX_TEXT)
        self.pos_q_linear, self.pos_k_linear = nn.Linear(dim, dim), nn.Linear(dim, dim)
        rates = [config.encoder_drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(EncoderLayer(config, rate) for rate in rates)
        self.layer_norm = nn.LayerNorm(dim)
        self.recompute, self.offload = config.checkpoint_activations, config.offload_activations
        self.bias_cache = BiasCache()

    def forward(
        self,
        src_tokens: Tensor,
        patch_images: Tensor | None = None,
        patch_masks: Tensor | None = None,
        patch_images_2: Tensor | None = None,
        sample_patch_num: int | None = None,
        token_embeddings: Tensor | None = None,
        patch_generator: random.Random | None = None,
        image_rows: Tensor | None = None,
    ) -> EncoderOutput:
        """See `OFA.encode`."""
        if src_tokens.size(1) > self.max_positions:
            raise ValueError(
                f"A source text of {src_tokens.size(1)} tokens is longer than the {self.max_positions} the model has "
                "positions for: shorten it (--max-src-length)."
            )
        images = []
        for index, pixels in ((2, patch_images_2), (1, patch_images)):
            if pixels is not None:
                masks = patch_masks if patch_masks is not None else src_tokens.new_ones(src_tokens.size(0))
                images.append(self.embed_patches(pixels, masks, index, sample_patch_num, patch_generator, image_rows))
        x = torch.cat([p.embedded for p in images] + [self.embed_text(src_tokens, token_embeddings)], dim=1)
        padding_mask = torch.cat([p.padding for p in images] + [src_tokens.eq(PAD)], dim=1)
        # An exported program cannot ask: it always takes the way for padding.
        padding = padding_mask if torch.compiler.is_exporting() or bool(padding_mask.any()) else None
        if padding is not None:
            x = x * ~padding.unsqueeze(-1)
        biases, positions = self._biases(images, src_tokens.size(1))
        for layer, bias in zip(self.layers, biases, strict=True):
            x = self._run(layer, x, bias, padding)
        return EncoderOutput(self.layer_norm(x), padding_mask, positions, padding is not None)

    def _run(self, layer: nn.Module, x: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        return run_layer(layer, x, bias, padding, recompute=self.recompute, offload=self.offload)

    def _biases(self, images: list[Patches], text_length: int) -> Biases:
        """Per layer, the bias (1 or B, H, S, S); and the normalized positions (1 or B, S, C).

        Without gradients they are kept by (grid, text length): images of the same size have the same biases.
        """
        if torch.is_grad_enabled() or self.training:  # torch.export works with gradients
            self.bias_cache.clear()  # an update may follow, and a bias kept until then would only take memory
            return self._compute_biases(images, text_length)
        if any(p.ids.dim() > 1 for p in images):
            return self._compute_biases(images, text_length)
        device = self.embed_positions.weight.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        grids = tuple((p.ids.numel(), int(p.ids[-1])) for p in images)
        # Tensors made in inference mode cannot take part in gradients outside it.
        key = (text_length, grids, precision, torch.is_inference_mode_enabled())
        return self.bias_cache.get(key, self._position_weights(), lambda: self._compute_biases(images, text_length))

    def _position_weights(self) -> list[Tensor]:
        """Everything that `_compute_biases` reads."""
        modules = (
            self.pos_q_linear, self.pos_k_linear, self.pos_ln, self.image_pos_ln, self.embed_positions,
            self.embed_image_positions, self.token_rel_pos_table_list, self.image_rel_pos_table_list,
        )  # fmt: skip
        weights = [weight for module in modules for weight in (*module.parameters(), *module.buffers())]
        return [*weights, self.token_rp_bucket, self.image_rp_bucket]

    def _compute_biases(self, images: list[Patches], text_length: int) -> Biases:
        text = self.pos_ln(self.embed_positions.weight[:text_length])[None]
        parts = [self.image_pos_ln(p.positions) for p in images]
        rows = max([part.size(0) for part in parts], default=1)
        positions = torch.cat([part.expand(rows, -1, -1) for part in (*parts, text)], dim=1)  # (1 or B, S, C)
        q = self.position_heads(self.pos_q_linear, positions, self.position_scale)
        absolute = q @ self.position_heads(self.pos_k_linear, positions).transpose(-1, -2)  # (1 or B, H, S, S)
        blocks = [self.image_bias(p.ids, p.ids) for p in images] + [self.token_bias(0, text_length, text_length)]
        biases = []
        for layer_blocks in zip(*blocks, strict=True):
            bias, start = absolute.clone(), 0
            for block in layer_blocks:  # each modality's own square on the diagonal
                end = start + block.size(-1)
                bias[:, :, start:end, start:end] += block
                start = end
            biases.append(bias)
        return biases, positions

    def train(self, mode: bool = True) -> "Encoder":
        """As in PyTorch; training forgets cached position biases, `eval()` has them checked before the next use."""
        if mode:
            self.bias_cache.clear()
        self.bias_cache.doubt()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> "Encoder":
        self.bias_cache.doubt()
        return super()._apply(fn, recurse)
