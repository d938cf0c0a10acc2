"""Names and files of the Hugging Face folder layout."""

import pytest

from models.ofa import OFAConfig
from utils.errors import UserError
from utils.hf_layout import (
    DEFAULTS,
    VERSION_ENTRIES,
    find_weights,
    read_options,
    to_config,
    to_fairseq_names,
    to_layout_names,
    to_options,
)

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


def test_there_and_back(golden):
    names = dict.fromkeys(golden("state_dict_tiny.json")["state_dict"], 0)
    layout = to_layout_names(names)
    assert set(names) - set(to_fairseq_names(layout)) == set(VERSION_ENTRIES)
    assert to_layout_names(layout) == layout
    assert {name for name in PUBLISHED if ".0." in name} <= set(layout)


def test_options():
    defaults = vars(OFAConfig())
    released = vars(OFAConfig.from_arch("ofa_base", attn_scale_factor=1.0))
    config = to_config(released, defaults)
    assert set(config) == set(DEFAULTS)
    assert (config["d_model"], config["encoder_ffn_dim"], config["normformer"]) == (768, 3072, True)
    assert released.items() <= {**defaults, **to_options(config)}.items()
    other = vars(OFAConfig.from_arch("ofa_base", scale_heads=False, scale_fc=False, max_target_positions=64))
    config = to_config(other, defaults)
    assert set(config) - set(DEFAULTS) == {"scale_heads", "scale_fc", "max_target_positions"}
    assert other.items() <= {**defaults, **to_options(config)}.items()


def test_folder(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"without config.json and model.safetensors or pytorch_model.bin"):
        find_weights(tmp_path)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "ofa", "attn_scale_factor": 2.0}')
    assert find_weights(tmp_path) == tmp_path / "pytorch_model.bin"
    options = read_options(tmp_path)
    assert (options["attn_scale_factor"], options["disable_entangle"], options["encoder_embed_dim"]) == (2.0, True, 512)
    for text, message in (("{", "not a JSON object"), ("[]", "not a JSON object"), ("{}", "type None, not 'ofa'")):
        config.write_text(text)
        with pytest.raises(UserError, match=message):
            read_options(tmp_path)
