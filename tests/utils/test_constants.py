"""One source of ids and separators: what must not import it agrees with it, and nobody writes it out again."""

import re
from pathlib import Path

import pytest

from criterions import losses
from data.text import SPECIALS, Vocabulary
from models.generation import CandidateTrie, GenerationConfig
from models.ofa.model import ENCODER_INPUTS
from tasks.base import encoder_inputs
from utils import constants
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
PACKAGES = ("criterions", "data", "models", "ofa_module", "tasks", "utils")


def test_special_ids():
    assert losses.NUM_SPECIAL_IDS == constants.NUM_SPECIAL == len(SPECIALS)
    ids = (constants.BOS, constants.PAD, constants.EOS, constants.UNK)
    assert (Vocabulary.bos, Vocabulary.pad, Vocabulary.eos, Vocabulary.unk) == ids
    trie = CandidateTrie([[7]])
    assert (trie.bos, trie.eos) == (constants.BOS, constants.EOS)


@pytest.mark.parametrize("literal", [r'"&&"', r"\b(BOS|PAD|EOS|UNK) = \d", r"\.(eq|ne)\([0-3]\)", r"padding_value=\d"])
def test_nobody_writes_them_out(literal):
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    found = [path for path in files if re.search(literal, path.read_text(encoding="utf-8"))]
    assert [path.relative_to(ROOT).as_posix() for path in found if path.name != "constants.py"] == []


def test_every_input_of_the_encoder_is_handed_on():
    net_input = {**{name: name for name in ENCODER_INPUTS}, "prev_output_tokens": 1, "sample_patch_num": 2}
    assert encoder_inputs({"net_input": net_input}) == {name: name for name in ENCODER_INPUTS}


@pytest.mark.parametrize("text", ["", "5", "5,", "a,b", "9,9", "-1,4", "1,2,3", "9,4"])
def test_a_wrong_constraint_range_is_the_same_sentence_everywhere(text):
    with pytest.raises(ValueError) as in_the_loss:
        losses.check_loss_options(constraint_range=text)
    with pytest.raises(UserError) as in_the_search:
        GenerationConfig(constraint_range=text)
    assert str(in_the_loss.value) == str(in_the_search.value)
