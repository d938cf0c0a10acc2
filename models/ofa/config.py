"""Every option of the model with its help text, and the named sizes, each stated as its difference.

The fields double as command line flags (`models/fairseq_ofa.py`), which is why types are written as
`Optional[int]`, every boolean defaults to False, and annotations are not postponed: fairseq's flag generator
reads them. The released models switch several booleans on; `RELEASED` lists them.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Optional

from utils.options import option

RESNET_BLOCKS: dict[str, tuple[int, int, int]] = {
    "resnet10": (1, 1, 1),
    "resnet18": (2, 2, 2),
    "resnet34": (3, 4, 6),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}
VIT = "ViT-B/16"
TRUNKS = (*RESNET_BLOCKS, VIT)


@dataclass
class OFAConfig:
    """Options of `models.ofa.OFA`; build one with `OFAConfig.from_arch`."""

    encoder_embed_dim: int = option(768, "encoder width C")
    encoder_ffn_embed_dim: int = option(3072, "width of the encoder's feed-forward layers")
    encoder_layers: int = option(6, "number of encoder layers")
    encoder_attention_heads: int = option(12, "number of encoder attention heads H")
    decoder_embed_dim: int = option(768, "decoder width C; must equal the encoder's, the token table is shared")
    decoder_ffn_embed_dim: int = option(3072, "width of the decoder's feed-forward layers")
    decoder_layers: int = option(6, "number of decoder layers")
    decoder_attention_heads: int = option(12, "number of decoder attention heads H")
    encoder_normalize_before: bool = option(False, "layer norm before each encoder block (always so)")
    decoder_normalize_before: bool = option(False, "layer norm before each decoder block (always so)")
    dropout: float = option(0.0, "dropout probability of embeddings and residual branches")
    attention_dropout: float = option(0.0, "dropout probability of attention weights")
    activation_dropout: float = option(0.0, "dropout probability after the activation of feed-forward layers")
    encoder_drop_path_rate: float = option(0.0, "drop path rate of the last encoder layer (linear over depth)")
    decoder_drop_path_rate: float = option(0.0, "drop path rate of the last decoder layer (linear over depth)")
    resnet_drop_path_rate: float = option(0.0, "drop path rate of the last block of each image trunk stage")
    resnet_type: str = option("resnet101", f"image trunk: {', '.join(TRUNKS)}")
    resnet_model_path: Optional[str] = option(
        None, "weights of a ResNet (torchvision, timm), of CLIP's ViT or of a trunk for a newly built image trunk"
    )
    freeze_resnet: bool = option(False, "freeze the image trunk's batch norm (statistics and affine)")
    sync_bn: bool = option(False, "batch norm statistics over all processes, eps 1e-3")
    share_all_embeddings: bool = option(False, "one token table for encoder, decoder and output (always so)")
    share_decoder_input_output_embed: bool = option(False, "tie decoder input and output tables (always so)")
    layernorm_embedding: bool = option(False, "layer norm on token embeddings")
    patch_layernorm_embedding: bool = option(False, "layer norm on image patch embeddings")
    code_layernorm_embedding: bool = option(False, "separate layer norm on image code embeddings in the decoder")
    add_type_embedding: bool = option(False, "add an embedding that tells text from image")
    num_images: int = option(1, "images a sample may hold; 2 gives the second image its own type embedding")
    entangle_position_embedding: bool = option(False, "add position embeddings to the encoder's input")
    disable_entangle: bool = option(False, "do not add position embeddings to the decoder's input")
    interpolate_position: bool = option(False, "interpolate image positions beyond orig_patch_image_size")
    orig_patch_image_size: int = option(256, "image side whose grid of positions is interpolated (pixels)")
    code_image_size: int = option(128, "side of the images that image codes describe (pixels)")
    max_source_positions: int = option(1024, "largest number of source text tokens")
    max_target_positions: int = option(1024, "largest number of target tokens")
    token_bucket_size: int = option(256, "buckets of relative text positions")
    image_bucket_size: int = option(42, "largest image grid side (patches); relative positions are per cell")
    attn_scale_factor: float = option(2.0, "attention logits are scaled by 1/sqrt(head width * this)")
    scale_attn: bool = option(False, "layer norm after attention")
    scale_fc: bool = option(False, "layer norm between the feed-forward projections")
    scale_heads: bool = option(False, "learned scale per attention head")
    scale_resids: bool = option(False, "learned scale of the feed-forward residual")
    freeze_encoder_embedding: bool = option(False, "freeze the (shared) token table")
    freeze_decoder_embedding: bool = option(False, "freeze the (shared) token table")
    checkpoint_activations: bool = option(False, "recompute layer activations in the backward pass to save memory")
    offload_activations: bool = option(False, "like checkpoint_activations, with the saved tensors in CPU memory")
    checkpoint_trunk: bool = option(False, "recompute the image trunk's blocks in the backward pass to save memory")
    vocab_size: int = option(59457, "number of token ids V; set from the dictionary")

    def __post_init__(self) -> None:
        """Refuses combinations the model cannot be built from, before anything is built."""
        if self.encoder_embed_dim != self.decoder_embed_dim:
            raise ValueError(
                f"--encoder-embed-dim {self.encoder_embed_dim} and --decoder-embed-dim {self.decoder_embed_dim} "
                "must be equal: both read one token table."
            )
        for side in ("encoder", "decoder"):
            width, heads = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_attention_heads")
            if heads < 1 or width % heads:
                raise ValueError(f"--{side}-attention-heads {heads} must divide --{side}-embed-dim {width}.")
        if self.resnet_type not in TRUNKS:
            raise ValueError(f"--resnet-type {self.resnet_type}: choose one of {', '.join(TRUNKS)}.")
        if self.num_images not in (1, 2):
            raise ValueError(f"--num-images {self.num_images}: choose 1 or 2.")

    @property
    def code_window(self) -> int:
        """Cells per side of an image code grid: the code_image_size at stride 8."""
        return self.code_image_size // 8

    @classmethod
    def from_arch(cls, arch: str, **overrides: Any) -> "OFAConfig":
        """The released model of a named size, e.g. `from_arch("ofa_base", dropout=0.1)`.

        Raises ValueError for an unknown size or field.
        """
        if arch not in ARCHITECTURES:
            raise ValueError(f"Unknown architecture {arch!r}: choose one of {', '.join(ARCHITECTURES)}.")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(overrides) - known):
            raise ValueError(f"OFAConfig has no option {', '.join(unknown)}.")
        return replace(cls(), **{**ARCHITECTURES[arch], **RELEASED, **overrides})


# What every architecture switches on by itself (the command line cannot switch these off).
COMMON: dict[str, Any] = {
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
    "layernorm_embedding": True,
    "patch_layernorm_embedding": True,
    "code_layernorm_embedding": True,
    "add_type_embedding": True,
}
# What every released checkpoint was trained with besides; command lines pass these flags.
RELEASED: dict[str, Any] = {"scale_attn": True, "scale_fc": True, "scale_heads": True, "disable_entangle": True}


def _size(width: int, ffn: int, layers: tuple[int, int], heads: int, resnet_type: str, **more: Any) -> dict[str, Any]:
    """Options of a size whose encoder and decoder are equally wide; layers = (encoder, decoder)."""
    sides = {
        f"{side}_{name}": value
        for side, depth in zip(("encoder", "decoder"), layers, strict=True)
        for name, value in dict(embed_dim=width, ffn_embed_dim=ffn, layers=depth, attention_heads=heads).items()
    }
    return {**COMMON, **sides, "resnet_type": resnet_type, **more}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ofa_demo": _size(128, 512, (2, 2), 4, "resnet10"),
    "ofa_tiny": _size(256, 1024, (4, 4), 4, "resnet50"),
    "ofa_medium": _size(512, 2048, (4, 4), 8, "resnet101"),
    "ofa_base": _size(768, 3072, (6, 6), 12, "resnet101"),
    "ofa_large": _size(1024, 4096, (12, 12), 16, "resnet152"),
    "ofa_huge": _size(1280, 5120, (24, 12), 16, "resnet152"),
}
