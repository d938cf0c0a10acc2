"""Starts from BART: fairseq's and Hugging Face's files, with and without unused tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.ofa import OFA, OFAConfig
from models.weights import upgrade_state_dict
from models.weights.bart import PADDED_ROWS, TEXT_ROWS, rename_entries, without_fillers
from models.weights.upgrade import TOKEN_TABLES
from utils.errors import UserError

ROWS = 50265 + 40  # 30 codes and 10 bins
SIZES: dict[str, Any] = dict(
    encoder_embed_dim=4, decoder_embed_dim=4, encoder_ffn_embed_dim=8, decoder_ffn_embed_dim=8, encoder_layers=1,
    decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, image_bucket_size=4, code_image_size=32,
    max_source_positions=30, max_target_positions=30,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> OFA:
    torch.manual_seed(0)
    return OFA(OFAConfig.from_arch("ofa_demo", vocab_size=ROWS, **SIZES)).eval()


def bart(rows: int, layout: str) -> dict[str, Tensor]:
    """Entries of a small BART in half precision, as fairseq's files or Hugging Face's have them."""
    generator = torch.Generator().manual_seed(3)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).half()

    table = some(rows, 4)
    state: dict[str, Tensor] = {}
    for side in ("encoder", "decoder"):
        attentions = ["self_attn"] if side == "encoder" else ["self_attn", "encoder_attn"]
        state[f"{side}.embed_tokens.weight"] = table
        state[f"{side}.embed_positions.weight"] = some(32, 4)
        for norm in (
            f"{side}.layernorm_embedding",
            *(f"{side}.layers.0.{a}_layer_norm" for a in (*attentions, "final")),
        ):
            state[f"{norm}.weight"], state[f"{norm}.bias"] = some(4), some(4)
        for module, (out, width) in {"fc1": (8, 4), "fc2": (4, 8)}.items():
            state[f"{side}.layers.0.{module}.weight"] = some(out, width)
            state[f"{side}.layers.0.{module}.bias"] = some(out)
        for attention in attentions:
            for letter in ("q_proj", "k_proj", "v_proj", "out_proj"):
                state[f"{side}.layers.0.{attention}.{letter}.weight"] = some(4, 4)
                state[f"{side}.layers.0.{attention}.{letter}.bias"] = some(4)
        if layout == "fairseq":
            state[f"{side}.version"] = torch.tensor([3.0])
    if layout == "model.":
        state = {f"model.{name}": value for name, value in state.items()}
        state |= {"model.shared.weight": table, "lm_head.weight": table, "final_logits_bias": torch.zeros(1, rows)}
    if layout == "shared":
        state = {name: value for name, value in state.items() if "embed_tokens" not in name} | {"shared.weight": table}
    return state


@pytest.mark.parametrize("layout", ["fairseq", "model.", "shared"])
@pytest.mark.parametrize("rows", [TEXT_ROWS, 50265, PADDED_ROWS])
def test_text_part_is_taken_and_the_rest_stays(model: OFA, layout: str, rows: int) -> None:
    source, state = bart(rows, "fairseq"), bart(rows, layout)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    report = upgrade_state_dict(state, model)
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in own.items()}
    table, old = state[TOKEN_TABLES[0]], source[TOKEN_TABLES[0]]
    assert all(torch.equal(state[name], table) for name in TOKEN_TABLES)
    assert torch.equal(table[:TEXT_ROWS], old[:TEXT_ROWS])
    if rows > TEXT_ROWS:
        assert torch.equal(table[TEXT_ROWS], old[-1])  # <mask>
    new = table[50265:].float()
    assert new.std().item() == pytest.approx(0.5, rel=0.25)  # 1 / sqrt(width)
    for name, value in source.items():
        assert name in TOKEN_TABLES or torch.equal(state[name], value), name  # position rows included
    missing = set(own) - set(source) - set(TOKEN_TABLES)
    assert {name for name in report.missing if "version" not in name} == {n for n in missing if "version" not in n}
    assert all(torch.equal(state[name], own[name]) for name in report.missing)
    assert "encoder.embed_images.conv1.weight" in report.missing


def test_unused_tokens_are_dropped_for_text_models_alone(model: OFA) -> None:
    table = torch.arange(PADDED_ROWS * 2.0).view(-1, 2)
    assert without_fillers(table).tolist() == [*table[:TEXT_ROWS].tolist(), table[-1].tolist()]
    whole = dict(model.state_dict())
    for name in TOKEN_TABLES:
        whole[name] = torch.zeros(PADDED_ROWS, 4)
    with pytest.raises(UserError, match=f"has {PADDED_ROWS} token rows"):
        upgrade_state_dict(whole, model)


def test_other_files_keep_their_names(model: OFA) -> None:
    state = {**model.state_dict(), "classification_heads.a.weight": torch.zeros(1)}
    assert rename_entries(state) == [] and list(state) == [*model.state_dict(), "classification_heads.a.weight"]


def test_another_size_is_named(model: OFA) -> None:
    with torch.device("meta"):
        base = OFA(OFAConfig.from_arch("ofa_base")).state_dict()
    absent = ("image", "rel_pos", "rp_bucket", "pos_", "attn_ln", "ffn_layernorm", "c_attn", "type_", "patch_", "code_")
    state = {name: value for name, value in base.items() if not any(part in name for part in absent)}
    state |= {name: torch.empty(50265, 768, device="meta") for name in TOKEN_TABLES}
    with pytest.raises(UserError, match="width 768 with 6\\+6 layers .*pass --arch ofa_base"):
        upgrade_state_dict(state, model, source="bart.base/model.pt")
