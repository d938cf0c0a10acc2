"""Each upgrade rule on its own, whole language-model starts, and what mismatches say."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.ofa import OFA, OFAConfig
from models.weights import upgrade_state_dict
from models.weights.upgrade import RULES, TOKEN_TABLES, LoadReport
from utils.errors import UserError

SMALL = dict(vocab_size=40, image_bucket_size=8, code_image_size=64, encoder_layers=1, decoder_layers=1)


def build(**options: Any) -> OFA:
    return OFA(OFAConfig.from_arch("ofa_demo", **{**SMALL, **options})).eval()


def names_and_shapes(arch: str, **options: Any) -> OFA:
    """A model without memory, for messages."""
    with torch.device("meta"):
        return OFA(OFAConfig.from_arch(arch, **options))


@pytest.fixture(scope="module")
def model() -> OFA:
    torch.manual_seed(0)
    return build()


@pytest.fixture
def state(model) -> dict[str, Tensor]:
    """What a file of another run would hold: the model's entries with other values."""
    generator = torch.Generator().manual_seed(5)
    entries = {}
    for name, value in model.state_dict().items():
        floating = value.is_floating_point() and not name.endswith("version")
        entries[name] = torch.randn(value.shape, generator=generator) if floating else value.clone()
    for name in TOKEN_TABLES:
        entries[name] = entries[TOKEN_TABLES[0]]
    return entries


def load(state: dict[str, Tensor], model: OFA, **options: Any) -> LoadReport:
    """Upgrades, then checks what every upgrade promises: a strict load succeeds."""
    report = upgrade_state_dict(state, model, **options)
    target = model.state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: v.shape for name, v in target.items()}
    return report


def test_whole_file_is_left_alone(model, state):
    before = dict(state)
    report = load(state, model)
    assert report == LoadReport() and str(report) == "every entry fits as it is"
    for name, value in before.items():
        assert torch.equal(state[name], value), name
    assert all(reason for _, reason in RULES)


def test_numbered_norms(model, state):
    names = {
        "encoder.layers.0.layer_norms.0": "encoder.layers.0.self_attn_layer_norm",
        "encoder.layers.0.layer_norms.1": "encoder.layers.0.final_layer_norm",
        "decoder.layers.0.layer_norms.0": "decoder.layers.0.self_attn_layer_norm",
        "decoder.layers.0.layer_norms.1": "decoder.layers.0.encoder_attn_layer_norm",
        "decoder.layers.0.layer_norms.2": "decoder.layers.0.final_layer_norm",
    }
    expected = dict(state)
    for old, new in names.items():
        for leaf in ("weight", "bias"):
            state[f"{old}.{leaf}"] = state.pop(f"{new}.{leaf}")
    report = load(state, model)
    assert len(report.renamed) == 10 and not report.missing
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_fused_projections(model, state):
    expected = dict(state)
    for module in ("encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"):
        for leaf in ("weight", "bias"):
            parts = [state.pop(f"{module}.{letter}_proj.{leaf}") for letter in "qkv"]
            state[f"{module}.in_proj_{leaf}"] = torch.cat(parts)
    report = load(state, model)
    assert len(report.renamed) == 6 and not report.missing
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kept", TOKEN_TABLES)
def test_token_table_stored_once(model, state, kept):
    table = state[kept]
    for name in set(TOKEN_TABLES) - {kept}:
        del state[name]
    report = load(state, model)
    assert all(torch.equal(state[name], table) for name in TOKEN_TABLES)
    assert len(report.renamed) == 2 and not report.missing


def test_encoder_entries_are_filled(model, state):
    dropped = [name for name in state if name.startswith("encoder.embed_images.") or "attn_ln" in name]
    for name in dropped:
        del state[name]
    report = load(state, model)
    assert sorted(report.missing) == sorted(dropped)
    trunk = "encoder.embed_images.conv1.weight"
    assert torch.equal(state[trunk], model.encoder.embed_images.conv1.weight)
    counters = sum(name.endswith("num_batches_tracked") for name in dropped)
    parts = sum("embed_images" in name for name in dropped) - counters
    assert f"encoder.embed_images.* ({parts} entries) kept at their initial values" in str(report)
    assert "encoder.layers.*.attn_ln.* (2 entries) kept at their initial values" in str(report)


def test_batch_norm_counters_both_ways(model, state):
    frozen = build(freeze_resnet=True)
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    report = load(state, frozen)
    assert report.unexpected == counters and len(counters) > 10 and not report.missing
    frozen.load_state_dict(state)
    report = load(state, model)  # and back, from a file of the frozen model
    assert sorted(report.missing) == sorted(counters) and not report.unexpected


def test_code_positions_are_the_models_own(model, state):
    state["decoder.image_position_idx"] = torch.zeros_like(state["decoder.image_position_idx"])
    assert load(state, model) == LoadReport()
    assert torch.equal(state["decoder.image_position_idx"], model.decoder.image_position_idx)
    larger = build(code_image_size=32)
    report = load(state, larger)
    assert report.resized == ["decoder.image_position_idx (834 -> 786 rows)"]
    assert torch.equal(state["decoder.image_position_idx"], larger.decoder.image_position_idx)


def test_image_position_rows_are_appended(model, state):
    names = [f"{side}.embed_image_positions.weight" for side in ("encoder", "decoder")]
    old = {name: state[name] for name in names}
    for name in names:
        state[name] = old[name][:20].half()
    report = load(state, model)
    assert report.resized == [f"{name} (20 -> 65 rows)" for name in names]
    for name in names:
        assert state[name].dtype == torch.float16 and torch.equal(state[name][:20], old[name][:20].half())
        assert state[name][20:].float().std().item() == pytest.approx(128**-0.5, rel=0.1)
    assert not torch.equal(state[names[0]][20:], state[names[1]][20:])


def test_second_image_type_is_the_models_own(model, state):
    two = build(num_images=2)
    file_rows = state["encoder.type_embedding.weight"]
    report = load(state, two)
    assert report.resized == ["encoder.type_embedding.weight (2 -> 3 rows)"]
    own = two.encoder.type_embedding.weight[2:]
    assert torch.equal(state["encoder.type_embedding.weight"], torch.cat([file_rows, own]))
    with pytest.raises(UserError, match="--num-images 2"):
        upgrade_state_dict(state, model)


def test_classification_heads_are_dropped(model, state):
    state["classification_heads.cola.dense.weight"] = torch.zeros(4, 4)
    report = load(state, model)
    assert report.unexpected == ["classification_heads.cola.dense.weight"]
    assert str(report) == "classification_heads.cola.* (1 entry) of the checkpoint left out"


def shorten(state: dict[str, Tensor], rows: int) -> Tensor:
    """Cuts the token tables of a file, which are separate copies there."""
    for name in TOKEN_TABLES:
        state[name] = state[name][:rows].clone()
    return state[TOKEN_TABLES[0]]


def test_vocabulary_rows_are_appended(model, state):
    old = shorten(state, 25)
    torch.manual_seed(2)
    report = load(state, model)
    table = state[TOKEN_TABLES[0]]
    assert torch.equal(table[:25], old) and all(torch.equal(state[name], table) for name in TOKEN_TABLES)
    torch.manual_seed(2)
    assert torch.equal(table[25:], torch.empty(15, 128).normal_(std=128**-0.5))
    assert report.resized == [f"{TOKEN_TABLES[0]} (25 -> 40 rows)"]


def test_one_vocabulary_row_too_many_is_dropped(model, state):
    old = state[TOKEN_TABLES[0]]
    for name in TOKEN_TABLES:
        state[name] = torch.cat([old, torch.ones(1, 128)])
    report = load(state, model)
    assert torch.equal(state[TOKEN_TABLES[1]], old) and report.resized == [f"{TOKEN_TABLES[0]} (41 -> 40 rows)"]
    for name in TOKEN_TABLES:
        state[name] = torch.cat([old, torch.ones(2, 128)])
    with pytest.raises(UserError, match="file.pt has 42 token rows, the model 40: use the vocabulary"):
        upgrade_state_dict(state, model, source="file.pt")


def language_model(state: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The entries BART has, in its old layout: no trunk, no relative positions, no mid norms, one token table."""
    absent = ("image", "rel_pos", "rp_bucket", "pos_", "attn_ln", "_attn_ln", "ffn_layernorm", "c_attn", "type_")
    absent += ("patch_", "code_", "er.layer_norm.", "output_projection")
    kept = {name: value for name, value in state.items() if not any(part in name for part in absent)}
    for name in TOKEN_TABLES[:2]:
        kept[name] = state[TOKEN_TABLES[0]][:rows].clone()
    return kept


def test_language_model_start(model, state):
    start = language_model(state, 30)
    assert len(start) < 60 < len(state)
    expected = dict(start)
    report = load(start, model)
    assert all(torch.equal(start[n], v) for n, v in expected.items() if n not in TOKEN_TABLES)
    assert torch.equal(start[TOKEN_TABLES[2]][:30], expected[TOKEN_TABLES[1]])
    assert set(report.missing) == set(state) - set(expected) - set(TOKEN_TABLES)
    lines = str(report).splitlines()
    assert any(line.startswith("decoder.cross_pos_q_linear.* (2 entries) kept") for line in lines)
    assert "encoder.embed_tokens.weight (30 -> 40 rows) resized" in lines
    model.load_state_dict(start)


def test_wrong_size_names_the_arch():
    base, tiny = names_and_shapes("ofa_base"), names_and_shapes("ofa_tiny")
    with pytest.raises(UserError) as caught:
        upgrade_state_dict(base.state_dict(), tiny, source="ofa_base.pt")
    assert str(caught.value) == (
        "ofa_base.pt holds a model of width 768 with 6+6 layers (ofa_base); expected width 256 with 4+4 layers "
        "(ofa_tiny): pass --arch ofa_base."
    )
    plain = names_and_shapes("ofa_tiny", scale_attn=False, scale_fc=False, scale_heads=False)
    other = names_and_shapes("ofa_base", resnet_type="resnet50")
    with pytest.raises(UserError, match="--arch ofa_base --scale-attn --scale-fc --scale-heads --resnet-type resnet50"):
        upgrade_state_dict(other.state_dict(), plain)


@pytest.mark.parametrize(
    ("file", "model", "advice"),
    [
        ({}, dict(scale_attn=False, scale_fc=False, scale_heads=False), "--scale-attn --scale-fc --scale-heads"),
        (dict(resnet_type="resnet18"), {}, "--resnet-type resnet18"),
        ({}, dict(resnet_type="resnet18"), "--resnet-type resnet10"),
        (dict(resnet_type="ViT-B/16"), {}, "--resnet-type ViT-B/16"),
        ({}, dict(resnet_type="ViT-B/16"), "--resnet-type resnet10"),
        (dict(encoder_layers=3), {}, "--encoder-layers 3"),
        ({}, dict(decoder_layers=3), "--arch ofa_demo"),
        (dict(max_source_positions=64), {}, "--max-source-positions 64"),
        (dict(image_bucket_size=8), {}, "--image-bucket-size 8"),
        (dict(decoder_attention_heads=2), {}, "--decoder-attention-heads 2"),
    ],
)
def test_mismatch_names_the_flags(file, model, advice):
    stored = names_and_shapes("ofa_demo", **file).state_dict()
    with pytest.raises(UserError, match=rf"c.pt .*: pass {advice}\.$"):
        upgrade_state_dict(stored, names_and_shapes("ofa_demo", **model), source="c.pt")


def test_unknown_entries_and_other_models(model, state):
    state["encoder.layers.0.adapter.up_proj.weight"] = torch.zeros(2)
    with pytest.raises(UserError, match=r"adapter.* \(1 entry\): use the model it was saved from"):
        upgrade_state_dict(state, model)
    with pytest.raises(UserError, match="x.pt is not an OFA model"):
        upgrade_state_dict({"features.0.weight": torch.zeros(3)}, model, source="x.pt")
