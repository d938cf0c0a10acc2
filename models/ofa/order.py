"""The order of parameters: that of the original model, because the slots of a saved optimizer have no names.

`fairseq-train` and the original put slot i of a checkpoint's optimizer to parameter i, so that files can go back and
forth between them and us only if both count alike.
"""

from torch import nn

from models.ofa.attention import MultiheadAttention
from models.ofa.decoder import Decoder
from models.ofa.encoder import Encoder
from models.ofa.layers import DecoderLayer, EncoderLayer

ORDER: dict[type[nn.Module], tuple[str, ...]] = {
    Encoder: (
        "embed_tokens", "layernorm_embedding", "type_embedding", "embed_images", "image_proj",
        "patch_layernorm_embedding", "embed_positions", "embed_image_positions", "pos_ln", "image_pos_ln",
        "pos_q_linear", "pos_k_linear", "layers", "layer_norm", "token_rel_pos_table_list", "image_rel_pos_table_list",
    ),
    Decoder: (
        "embed_tokens", "layernorm_embedding", "embed_positions", "embed_image_positions", "pos_ln", "image_pos_ln",
        "self_pos_q_linear", "self_pos_k_linear", "cross_pos_q_linear", "cross_pos_k_linear",
        "code_layernorm_embedding", "layers", "layer_norm", "output_projection", "token_rel_pos_table_list",
        "image_rel_pos_table_list",
    ),
    EncoderLayer: (
        "self_attn", "self_attn_layer_norm", "fc1", "fc2", "attn_ln", "ffn_layernorm", "final_layer_norm",
    ),
    DecoderLayer: (
        "self_attn", "self_attn_ln", "cross_attn_ln", "self_attn_layer_norm", "encoder_attn",
        "encoder_attn_layer_norm", "ffn_layernorm", "fc1", "fc2", "final_layer_norm",
    ),
    MultiheadAttention: ("k_proj", "v_proj", "q_proj", "out_proj"),
}  # fmt: skip


def put_in_order(model: nn.Module) -> None:
    """Registers the children of every module anew, in `ORDER`; those that are not in there stay in front."""
    for module in list(model.modules()):
        children = dict(module.named_children())
        for name in ORDER.get(type(module), ()):
            if name in children:
                delattr(module, name)
                module.add_module(name, children[name])
