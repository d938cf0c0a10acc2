"""Folders exactly as the authors' are, read by ours; and ours, of which their class takes every tensor."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from data.text import GPT2_DIR
from models.hf import OFAForConditionalGeneration
from models.ofa import OFA, OFAConfig
from models.weights import load_model
from models.weights.convert import main as convert
from tests.utils.test_checkpoint import hugging_face_names
from utils.hf_layout import DEFAULTS

TABLE = "decoder.image_position_idx"
TIED = {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}
DIM, LAYERS, FFN, HEADS = 8, 2, 16, 4
SOURCES = torch.tensor([[0, 45, 46, 7, 12, 2], [0, 49, 2, 1, 1, 1]])
PREVIOUS = torch.tensor([[0, 5, 6], [0, 8, 9]])


def network(size):
    torch.manual_seed(0)
    dims = dict(embed_dim=DIM, layers=LAYERS, ffn_embed_dim=FFN, attention_heads=HEADS)
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in dims.items()}
    return OFA(OFAConfig.from_arch("ofa_tiny", **sizes, code_image_size=size)).eval()


def authors_state(model):
    """The tensors of the authors' class: their names, all three of the token table, and their table of positions."""
    state, window = hugging_face_names(model.state_dict()), model.config.code_image_size // 8
    cells = [row * 42 + column + 1 for row in range(window) for column in range(window)]
    return state | {TABLE: torch.tensor([0, *cells, *([1024] * 768)])}


def write_authors_folder(folder, model):
    folder.mkdir()
    state = authors_state(model)
    torch.save(state, folder / "pytorch_model.bin")
    sizes = dict(d_model=DIM, resnet_type="resnet50", code_image_size=model.config.code_image_size, dropout=0.0)
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": LAYERS, f"{side}_ffn_dim": FFN, f"{side}_attention_heads": HEADS}
    config = {**DEFAULTS, **sizes, "architectures": ["OFAModel"], "transformers_version": "4.16.0.dev0"}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copyfile(GPT2_DIR / "vocab.bpe", folder / "merges.txt")
    shutil.copyfile(GPT2_DIR / "encoder.json", folder / "vocab.json")
    return folder


@torch.no_grad()
def logits_of(model, code):
    codes = torch.tensor([code, code])
    enc = model.encode(SOURCES)
    return model.decode(PREVIOUS, enc, codes)


def assert_same(found, model):
    assert found.state_dict()[TABLE].equal(model.state_dict()[TABLE])
    for code in (False, True):
        assert torch.equal(logits_of(found.eval(), code), logits_of(model, code))


@pytest.fixture(params=[128, 256])
def model(request):
    return network(request.param)


def test_the_authors_folder_is_read(model, tmp_path):
    folder = write_authors_folder(tmp_path / "OFA-tiny", model)
    entries = {128: 1025, 256: 1793}[model.config.code_image_size]
    assert torch.load(folder / "pytorch_model.bin")[TABLE].shape == (entries,)
    for auto in (AutoModel, AutoModelForSeq2SeqLM, OFAForConditionalGeneration):
        loaded, report = auto.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()) and loaded.config.network().code_image_size == model.config.code_image_size
        assert_same(loaded, model)
    assert_same(load_model(folder), model)


def test_a_folder_that_does_not_say_how_large_code_images_are(model, tmp_path):
    folder = write_authors_folder(tmp_path / "OFA-tiny", model)
    config = json.loads((folder / "config.json").read_text())
    del config["code_image_size"]
    (folder / "config.json").write_text(json.dumps(config))
    assert_same(load_model(folder), model)
    assert convert([str(folder), str(tmp_path / "again")]) == 0
    assert_same(AutoModel.from_pretrained(tmp_path / "again"), model)


def test_wrong_shapes_are_still_refused(model, tmp_path):
    folder = write_authors_folder(tmp_path / "OFA-tiny", model)
    state = authors_state(model)
    state["encoder.layer_norm.weight"] = torch.ones(DIM + 1)
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModel.from_pretrained(folder)


def test_a_table_of_other_entries_does_not_count(model, tmp_path):
    folder = write_authors_folder(tmp_path / "OFA-tiny", model)
    state = authors_state(model)
    for length in (len(state[TABLE]), len(state[TABLE]) + 1, 5):
        torch.save({**state, TABLE: torch.zeros(length).long()}, folder / "pytorch_model.bin")
        assert_same(AutoModel.from_pretrained(folder), model)
        assert_same(load_model(folder), model)


@pytest.mark.parametrize("writer", ["folder", "pt", "own file", "save_pretrained", "state_dict", "auto"])
def test_their_class_takes_what_is_written(writer, model, tmp_path):
    """Their class compares names and shapes; what is stored once it has tied already."""
    source, target = write_authors_folder(tmp_path / "OFA-tiny", model), tmp_path / "written"
    if writer == "folder":
        assert convert([str(source), str(target)]) == 0
    elif writer == "pt":
        assert convert([str(source), str(tmp_path / "a.pt")]) == 0 == convert([str(tmp_path / "a.pt"), str(target)])
    elif writer == "own file":
        torch.save({"model": model.state_dict()}, tmp_path / "a.pt")
        assert convert([str(tmp_path / "a.pt"), str(target)]) == 0
    else:
        loaded = (AutoModel if writer == "auto" else OFAForConditionalGeneration).from_pretrained(source)
        loaded.save_pretrained(target, **({"state_dict": loaded.state_dict()} if writer == "state_dict" else {}))
        assert_same(loaded, model)  # which writing leaves as it was
    theirs, written = authors_state(model), load_file(target / "model.safetensors")
    assert set(written) == set(theirs) - TIED
    for name, tensor in written.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    assert_same(AutoModel.from_pretrained(target), model)
    assert_same(load_model(target), model)
    config = AutoConfig.from_pretrained(target).network()
    assert config == model.config


def test_file_of_ours_has_todays_length(model, tmp_path):
    source = write_authors_folder(tmp_path / "OFA-tiny", model)
    assert convert([str(source), str(tmp_path / "a.pt")]) == 0
    state = torch.load(tmp_path / "a.pt")["model"]
    assert {name: x.shape for name, x in state.items()} == {name: x.shape for name, x in model.state_dict().items()}
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
