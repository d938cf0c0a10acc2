"""OFA: encoder and decoder over one token table, in plain PyTorch (Wang et al. 2022, arXiv:2202.03052)."""

import random
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.ofa.cache import DecoderState
from models.ofa.config import OFAConfig
from models.ofa.decoder import Decoder
from models.ofa.encoder import Encoder, EncoderOutput
from models.ofa.folding import refuse_change
from models.ofa.order import put_in_order

INIT_STD = 0.02
# What the encoder reads of a batch's `net_input`.
ENCODER_INPUTS = ("src_tokens", "patch_images", "patch_masks", "patch_images_2", "image_rows")


class OFA(nn.Module):
    """The model; parameter names are those of the released checkpoints.

    Attributes:
        cuda_graphs: whether `generate` replays its steps as CUDA graphs on a GPU.
    """

    cuda_graphs = False

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, self.encoder.embed_tokens)
        self.reset_parameters()
        put_in_order(self)
        if config.freeze_encoder_embedding or config.freeze_decoder_embedding:
            self.encoder.embed_tokens.weight.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Linear and embedding weights N(0, 0.02), biases 0; the image trunk keeps its own initialization.

        The tied token table is drawn last of all, its padding row included, as in the original.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> "OFA":
        """As in PyTorch; raises UserError for a model that `prepare_for_inference` has changed."""
        if mode:
            refuse_change(self)
        return super().train(mode)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in PyTorch; raises UserError as `train` does."""
        refuse_change(self)
        return super().load_state_dict(state_dict, strict, assign)

    def encode(
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
        """Encodes text and images.

        Args:
            src_tokens: (B, L) ids, right-padded. patch_images, patch_images_2: (B, 3, R, R') pixels.
            patch_masks: (B,), False = the sample has no image; all True when absent.
            sample_patch_num: keep this many patches of an image, drawn without replacement, in random order.
            token_embeddings: (B, L, C), used in place of the table's rows.
            patch_generator: draws the patches; None is Python's global generator.
            image_rows: (B,), which of the images (fewer than B, each encoded once) a sample sees; None = its own.

        Returns:
            EncoderOutput: out (B, S, C), padding_mask (B, S) True = padding, image positions first, then text.

        Raises:
            ValueError: more text or patches than the model has positions for.
        """
        images = (patch_images, patch_masks, patch_images_2)
        return self.encoder(src_tokens, *images, sample_patch_num, token_embeddings, patch_generator, image_rows)

    def decode(self, prev_output_tokens: Tensor, enc: EncoderOutput, code_masks: Tensor | None = None) -> Tensor:
        """Logits (B * G, T, V) of whole sequences; previous tokens (B * G, T) begin with bos and are right-padded.

        `enc` holds B samples: each is read by G consecutive sequences (1, or several samples or candidates).
        code_masks (B * G,): True = the sequence holds image codes. Raises ValueError for too long sequences, and for
        a number of sequences that B does not divide.
        """
        return self.project(self.decoder(prev_output_tokens, enc, code_masks))

    def start(self, enc: EncoderOutput, groups: int, capacity: int, code: bool = False) -> DecoderState:
        """State for step-by-step decoding of `groups` rows per sample, up to `capacity` positions (bos included)."""
        return self.decoder.start(enc, groups, capacity, code)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Features (B * G, n, C) after the next tokens (B * G, n); equal to the same positions of one full pass."""
        return self.decoder.step(tokens, state)

    def project(self, features: Tensor, ids: Tensor | None = None) -> Tensor:
        """Features (..., C) -> logits (..., V), or (..., len(ids)) of some token ids only."""
        weight = self.decoder.output_projection.weight
        return F.linear(features, weight if ids is None else weight[ids])

    def forward(
        self,
        src_tokens: Tensor,
        prev_output_tokens: Tensor,
        patch_images: Tensor | None = None,
        patch_masks: Tensor | None = None,
        code_masks: Tensor | None = None,
        **encoder_inputs: Any,
    ) -> Tensor:
        """Logits (B * G, T, V); arguments as in `encode` and `decode`."""
        enc = self.encode(src_tokens, patch_images, patch_masks, **encoder_inputs)
        return self.decode(prev_output_tokens, enc, code_masks)
