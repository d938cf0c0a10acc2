"""Names and files of the Hugging Face folder layout."""

import pytest

from utils.errors import UserError
from utils.hf_layout import find_weights, read_options, to_fairseq_names

PUBLISHED = {
    "encoder.layers.3.self_attn_mid_layer_norm.weight": "encoder.layers.3.attn_ln.weight",
    "encoder.layers.11.ffn_layer_norm.bias": "encoder.layers.11.ffn_layernorm.bias",
    "decoder.layers.0.self_attn_mid_layer_norm.bias": "decoder.layers.0.self_attn_ln.bias",
    "decoder.layers.0.cross_attn_mid_layer_norm.weight": "decoder.layers.0.cross_attn_ln.weight",
    "decoder.layers.0.cross_attn.c_attn": "decoder.layers.0.encoder_attn.c_attn",
    "decoder.layers.0.cross_attn.out_proj.bias": "decoder.layers.0.encoder_attn.out_proj.bias",
    "decoder.layers.0.cross_attn_layer_norm.weight": "decoder.layers.0.encoder_attn_layer_norm.weight",
    "decoder.layers.0.ffn_layer_norm.weight": "decoder.layers.0.ffn_layernorm.weight",
}


def test_renamed_entries():
    values = {name: object() for name in PUBLISHED}
    assert to_fairseq_names(values) == {PUBLISHED[name]: value for name, value in values.items()}


def test_fairseq_names_stay(golden):
    names = golden("state_dict_huge.json")["state_dict"]
    assert list(to_fairseq_names(names)) == list(names)
    assert set(PUBLISHED.values()) < set(names)


def test_folder(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"without config.json and model.safetensors or pytorch_model.bin"):
        find_weights(tmp_path)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "ofa", "attn_scale_factor": 2.0}')
    assert find_weights(tmp_path) == tmp_path / "pytorch_model.bin"
    assert read_options(tmp_path) == {"model_type": "ofa", "attn_scale_factor": 2.0, "disable_entangle": True}
    for text, message in (("{", "not a JSON object"), ("[]", "not a JSON object"), ("{}", "type None, not 'ofa'")):
        config.write_text(text)
        with pytest.raises(UserError, match=message):
            read_options(tmp_path)
