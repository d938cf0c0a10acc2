"""Options that the original implementation expects in a checkpoint and that mean nothing here.

It builds a model from `cfg["model"]` of the file, and fails where one of them is not in there. Saved with its own
defaults, our files load in it as its files load in ours.
"""

from collections.abc import Mapping
from typing import Any

# Options of the original's model, and of fairseq's transformer below it, that are no fields of `OFAConfig`.
MODEL_OPTIONS: dict[str, Any] = {
    "activation_fn": "gelu",
    "relu_dropout": 0.0,
    "no_scale_embedding": True,
    "no_token_positional_embeddings": False,
    "no_cross_attention": False,
    "cross_self_attention": False,
    "no_decoder_final_norm": False,
    "merge_src_tgt_embed": False,
    "char_inputs": False,
    "export": False,
    "load_checkpoint_heads": False,
    "spectral_norm_classification_head": False,
    "pooler_activation_fn": "tanh",
    "pooler_dropout": 0.0,
    "pooler_classifier": "mlp",
    "adaptive_input": False,
    "adaptive_softmax_cutoff": None,
    "adaptive_softmax_dropout": 0.0,
    "adaptive_softmax_factor": 4.0,
    "tie_adaptive_weights": False,
    "tie_adaptive_proj": False,
    "quant_noise_pq": 0.0,
    "quant_noise_pq_block_size": 8,
    "quant_noise_scalar": 0.0,
    "min_params_to_wrap": 10**8,
    "base_layers": 0,
    "base_sublayers": 1,
    "base_shuffle": 1,
    "adapter": False,
    "adapter_dim": 200,
    "bitfit": False,
    **{
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "embed_path": None,
            "learned_pos": True,
            "layerdrop": 0.0,
            "layers_to_keep": None,
            "prompt": False,
            "prompt_type": "prefix",
            "prompt_length": 100,
            "prompt_projection": False,
        }.items()
    },
    "freeze_encoder": False,
    "freeze_decoder": False,
}


def with_original_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model, and those that the original expects beside them; what is there wins.

    Args:
        model: `cfg["model"]` of a checkpoint, with the widths of encoder and decoder.
    """
    widths = {f"decoder_{end}_dim": model["decoder_embed_dim"] for end in ("input", "output")}
    if isinstance(width := model["encoder_embed_dim"], int):  # what is no number is refused when a model is built
        widths |= {f"{side}_prompt_dim": 2 * width for side in ("encoder", "decoder")}
    return {**MODEL_OPTIONS, **widths, **model}
