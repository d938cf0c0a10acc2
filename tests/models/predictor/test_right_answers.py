"""checkpoints/ofa_demo.pt through every method of the predictor: right answers about handwriting that no training saw.

The margins lie between chance and what the checkpoint reaches, far from both.
"""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from data.vqa_gen import CONFIDENCE_MARK
from digits.examples import TEMPERATURE
from digits.legibility import legibility
from digits.scene import Box, render
from digits.tasks import TASKS
from digits.vqa_gen import ANSWERS
from digits.words import COLOURS, DIGITS, DigitSpec
from models.predictor import OFAPredictor
from tests.programs import ROOT, run

CHECKPOINT = ROOT / "checkpoints" / "ofa_demo.pt"
VQGAN = tuple(str(ROOT / "checkpoints" / "ofa_demo_vqgan" / name) for name in ("last.ckpt", "model.yaml"))
TEST, SEED, SIDE = 2, 1, 96  # index of the test split's file; the defaults of `python -m data.demo`
PRETRAINED_SIDE = 48  # whose pixels location tokens count


def rows_of(task, count, wanted=lambda row: True):
    """The first wanted rows of a task's test file."""
    rows = (TASKS[task].row(TEST, number, SEED, SIDE) for number in itertools.count())
    return list(itertools.islice(filter(wanted, rows), count))


def overlap(found, box):
    """Intersection over union of a `Box` and left, top, right and bottom."""
    width = max(min(found.x1, box[2]) - max(found.x0, box[0]), 0)
    height = max(min(found.y1, box[3]) - max(found.y0, box[1]), 0)
    area = (found.x1 - found.x0) * (found.y1 - found.y0) + (box[2] - box[0]) * (box[3] - box[1])
    return width * height / (area - width * height)


@pytest.fixture(scope="module")
def predictor():
    return OFAPredictor.load(CHECKPOINT, device="cpu", vqgan=VQGAN)


@pytest.fixture(scope="module")
def scenes():
    """Ten scenes of one digit."""
    return [row[-1] for row in rows_of("caption", 10)]


@pytest.fixture(scope="module")
def crowded():
    """Twenty scenes of two or three digits."""
    rows = rows_of("refcoco", 20, lambda row: len(row[-1].objects) > 1)
    return [row[-1] for row in rows]


def test_captions_are_exact(predictor, scenes):
    found = predictor.caption([render(scene) for scene in scenes])
    right = [p.text == scene.specs[0].phrase for p, scene in zip(found, scenes, strict=True)]
    assert sum(right) >= 8, found  # chance: one in 540
    assert [predictor.caption(render(scene)).text for scene in scenes[:3]] == [p.text for p in found[:3]]


@pytest.mark.parametrize("candidates", [None, ANSWERS], ids=["open", "candidates"])
def test_questions_are_answered(predictor, candidates):
    # Colors, digits, places and counts; questions of yes and no are learned in fine-tuning only.
    rows = rows_of("vqa_gen", 20, lambda row: not row[2].startswith("is "))
    answers = [row[3].partition(CONFIDENCE_MARK)[2] for row in rows]
    found = predictor.answer([render(row[-1]) for row in rows], [row[2] for row in rows], candidates)
    right = sum(p.text == answer for p, answer in zip(found, answers, strict=True))
    assert right >= 12, found  # chance: 3.6


def test_phrases_are_found(predictor, scenes):
    found = predictor.ground([render(scene) for scene in scenes], [f"the {scene.specs[0].name}" for scene in scenes])
    boxes = [scene.objects[0].box for scene in scenes]
    own = [overlap(*pair) for pair in zip(found, boxes, strict=True)]
    of_others = [overlap(*pair) for pair in zip(found, boxes[1:] + boxes[:1], strict=True)]
    assert np.mean(own) > 0.45 and np.mean(of_others) < 0.25


def test_a_phrase_chooses_among_several_digits(predictor):
    # Telling digits apart by name is hardly learned in pretraining, by place it is.
    rows = rows_of("refcoco", 10, lambda row: " at the " in row[2] and len(row[-1].objects) > 1)
    found = predictor.ground([render(row[-1]) for row in rows], [row[2] for row in rows])
    own, of_others = [], []
    for box, row in zip(found, rows, strict=True):
        named = tuple(float(edge) for edge in row[3].split(","))
        own.append(overlap(box, named))
        of_others += [overlap(box, item.box) for item in row[-1].objects if item.box != named]
    assert np.mean(own) > 0.4 and np.mean(of_others) < 0.1 and sum(share > 0 for share in own) >= 8


def test_classes_are_chosen(predictor, scenes):
    """Names as its captions spell them: in pretraining none began with a digit, so digits alone are beyond it."""
    names = [f"a {colour} {digit}" for colour in COLOURS for digit in DIGITS]
    ranked = predictor.classify([render(scene) for scene in scenes], names, top_k=3)
    right = [labels[0].text == f"a {scene.specs[0].name}" for labels, scene in zip(ranked, scenes, strict=True)]
    assert sum(right) >= 8, ranked  # chance: one in 60
    assert all([p.score for p in labels] == sorted((p.score for p in labels), reverse=True) for labels in ranked)


def test_entailment_tells_right_captions_from_wrong_ones(predictor, scenes):
    """Pretraining asks in the same words whether captions match; it never answered "maybe"."""
    images, phrases = [render(scene) for scene in scenes], [scene.specs[0].phrase for scene in scenes]
    found = predictor.entail(images, phrases)
    wrong = predictor.entail(images, phrases[1:] + phrases[:1])
    assert sum(p.text == "yes" for p in found) >= 8 and sum(p.text == "no" for p in wrong) >= 8, (found, wrong)
    assert all(1 / 3 < p.score <= 1 for p in found + wrong)


def test_summaries_begin_with_what_the_article_names_first(predictor):
    """Pretraining fills gaps in articles and knows no summaries: it repeats them."""
    articles = [row[0] for row in rows_of("gigaword", 6)]
    spec = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(DIGITS)})")
    found = predictor.summarise(articles)
    pairs = [(spec.search(article), spec.search(p.text)) for article, p in zip(articles, found, strict=True)]
    assert sum(named is not None and named[0] == first[0] for first, named in pairs) >= 4  # chance: one in 60


def test_an_instruction_describes_the_digit_in_a_region(predictor, crowded):
    scale = PRETRAINED_SIDE / SIDE
    prompts, own, others = [], 0, 0
    for scene in crowded:
        place = "".join(f"<bin_{round(edge * scale)}>" for edge in scene.objects[-1].box)
        prompts.append(f"  what does the region describe? region:{place}")
    found = predictor.generate([render(scene) for scene in crowded], prompts, max_len_b=16)
    for p, scene in zip(found, crowded, strict=True):
        said = set(p.text.split()) - {"the", "digit", "at"}
        fits = [bool(said) and said <= set(" ".join(item.spec).split()) for item in scene.objects]
        own, others = own + fits[-1], others + sum(fits[:-1]) / (len(fits) - 1)
    assert own >= 14 and others <= 8, found


def test_drawings_show_digit_and_color(predictor):
    specs = [DigitSpec(colour, digit, "center") for digit in DIGITS for colour in COLOURS]
    torch.manual_seed(0)
    drawn = predictor.draw([f"a {spec.name}" for spec in specs], temperature=TEMPERATURE)
    found = legibility(drawn, specs, Box(0, 0, *drawn[0].size))
    assert found.digit > 0.6 and found.colour > 0.8, found  # chance: 0.1 and 0.17


@pytest.mark.parametrize(
    ("argv", "field", "truth", "least"),
    [
        (["caption"], "caption", lambda scene: " and ".join(spec.phrase for spec in scene.specs), 8),
        (["answer", "--question=how many digits are there?"], "answer", lambda scene: DIGITS[len(scene.specs)], 16),
    ],
    ids=["caption", "answer"],
)
def test_predict_py(argv, field, truth, least, scenes, crowded, tmp_path):
    shown = scenes if field == "caption" else [*scenes, *crowded[:10]]
    for number, scene in enumerate(shown):
        render(scene).save(tmp_path / f"{number:02}.png")
    said = run("predict.py", argv[0], tmp_path, *argv[1:], f"--checkpoint={CHECKPOINT}", "--device=cpu")
    records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [Path(record["id"]).name for record in records] == [f"{number:02}.png" for number in range(len(shown))]
    right = sum(record[field] == truth(scene) for record, scene in zip(records, shown, strict=True))
    assert right >= least, said
