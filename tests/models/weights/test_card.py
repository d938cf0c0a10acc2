"""The card: what it says of a run, what it takes for the same, what it refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from data.answers import AnswerConfig
from data.images import IMAGENET_MEAN, IMAGENET_STD
from data.prompts import PROMPTS
from data.text import Vocabulary
from digits.vocabulary import BPE_DIR
from models.weights.card import FORMAT, KEY, LISTED, Candidates, Card, Picture, answers_digest, ids_digest, task_prompts
from utils.errors import UserError

ANSWERS = ["red", "blue", "dark green"]


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(BPE_DIR, code_dict_size=0, num_bins=10)


@pytest.fixture(scope="module")
def card(vocab):
    config = vars(AnswerConfig(patch_image_size=48, imagenet_default_mean_and_std=True, prompt_type="prev_output"))
    return Card.make("vqa_gen", config, vocab, ANSWERS, {"beam": 5})


def test_it_says_what_a_run_needs_and_names_no_path(card, vocab, tmp_path):
    assert card.picture == Picture(48, list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert card.prompts == {"vqa_gen": " {question}", "vqa_gen objects": " {question} object: {objects}"}
    assert card.candidates == Candidates(answers_digest(ANSWERS), 3, ANSWERS)
    assert (card.vocabulary.size, card.vocabulary.bpe, card.vocabulary.num_bins) == (len(vocab), "gpt2", 10)
    options = card.task_options("a.pt")
    assert (options["patch_image_size"], options["imagenet_default_mean_and_std"]) == (48, True)
    assert (options["prompt_type"], options["code_dict_size"], options["num_bins"]) == ("prev_output", 0, 10)
    assert not {"data", "bpe_dir", "ans2label_file"} & options.keys()
    torch.save({KEY: card.plain()}, tmp_path / "a.pt")
    plain = torch.load(tmp_path / "a.pt", weights_only=True)
    assert Card.read(plain, "a.pt") == card == Card.read(json.loads(json.dumps(plain)), "a.pt")
    assert Card.read({"model": {}}, "released.pt") is None


def test_the_digest_is_of_symbols_in_order(card, vocab, tmp_path):
    lines = (BPE_DIR / "dict.txt").read_text(encoding="utf-8").splitlines()
    shutil.copytree(BPE_DIR, tmp_path / "counted")
    (tmp_path / "counted/dict.txt").write_text("".join(f"{line[:-2]} {n}\r\n" for n, line in enumerate(lines)))
    assert card.fits(Vocabulary.load(tmp_path / "counted", code_dict_size=0, num_bins=10))
    shutil.copytree(BPE_DIR, tmp_path / "swapped")
    (tmp_path / "swapped/dict.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    other = Vocabulary.load(tmp_path / "swapped", code_dict_size=0, num_bins=10)
    with pytest.raises(UserError, match=r"^X makes another vocabulary \(2010 ids, .* than a.pt was .* 10 bins, gpt2\)"):
        card.check_vocabulary(other, "a.pt", "X", "do this")
    longer, shifted = (Vocabulary.load(BPE_DIR, code_dict_size=c, num_bins=10 + b) for c, b in ((0, 5), (5, 0)))
    assert card.fits(longer, grown=True) and not card.fits(longer) and not card.fits(shifted, grown=True)
    assert ids_digest(longer, len(vocab)) == ids_digest(vocab, len(vocab)) != ids_digest(longer, len(longer))
    shorter = Vocabulary.load(BPE_DIR, code_dict_size=0, num_bins=9)
    assert not card.fits(shorter, grown=True) and not card.fits(shorter)


def test_candidates_count_whatever_their_order(card):
    card.check_answers(ANSWERS[::-1], "a.pt", "F", "do this")
    for other in (ANSWERS[:2], [*ANSWERS, "gray"], ["red", "blue", "green"], []):
        with pytest.raises(UserError, match=rf"^F holds other answers \({len(other)}\) than a.pt .* \(3\): do this.$"):
            card.check_answers(other, "a.pt", "F", "do this")
    free = replace(card, candidates=None)
    free.check_answers([], "a.pt", "F", "do this")
    with pytest.raises(UserError, match="than a.pt was trained with .0."):
        free.check_answers(ANSWERS, "a.pt", "F", "do this")


def test_a_long_list_is_kept_as_its_digest(vocab):
    answers = [f"{number:050}" for number in range(LISTED // 50)]
    card = Card.make("vqa_gen", vars(AnswerConfig()), vocab, answers)
    assert card.candidates == Candidates(answers_digest(answers), len(answers), None)
    assert Card.make("caption", vars(AnswerConfig()), vocab).candidates is None


def test_prompts_are_those_of_the_table(card, monkeypatch):
    assert task_prompts("refcoco", "bert") == {"refcoco": PROMPTS["refcoco"]["bert"]}
    assert task_prompts("image_classify", "bert") == {"image_classify": PROMPTS["image_classify"]["gpt2"]}
    assert {"caption", "vqa_gen", "refcoco", "pretrain text"} <= task_prompts("unify_task", "gpt2").keys()
    card.check_prompts("a.pt")
    monkeypatch.setitem(PROMPTS, "vqa_gen", {"gpt2": " q: {question}"})
    with pytest.raises(UserError, match="the prompt ' {question}' for 'vqa_gen', data/prompts.py has ' q: {question}'"):
        card.check_prompts("a.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=FORMAT + 1), "a.pt was written by a later version"),
        (lambda c: c.pop("task"), "'ofa_card' of a.pt is invalid"),
        (lambda c: c.update(colour="red"), "is invalid"),
        (lambda c: c.update(options=7), "is invalid"),
        (lambda c: c.update(vocabulary={**c["vocabulary"], "size": "many"}), "the vocabulary's size"),
        (lambda c: c["candidates"]["answers"].append("a"), "its candidates do not match its digest"),
        (
            lambda c: c.update(picture={**c["picture"], "mean": [0, 0, 0]}),
            r"mean \[0, 0, 0\] .*, which is not supported",
        ),
    ],
)
def test_cards_that_cannot_be_used(card, change, message):
    content = card.plain()
    change(content)
    with pytest.raises(UserError, match=message):
        Card.read({KEY: content}, "a.pt")
    with pytest.raises(UserError, match="is invalid"):
        Card.read({KEY: [1]}, "a.pt")
