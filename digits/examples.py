"""Digit scenes to try a model on: images with what may be asked of them, and the right answers."""

from dataclasses import dataclass
from pathlib import Path

from data.prompts import prompt
from data.vqa_gen import CONFIDENCE_MARK
from digits.caption import CAPTION
from digits.refcoco import PHRASES, REFCOCO
from digits.rows import DemoTask, Row
from digits.scene import Scene, render
from digits.vqa_gen import COUNTS, KINDS, VQA_GEN
from digits.words import DIGITS, VALUES

SEED, SIDE = 2, 288  # pixels: large enough to look at
TEST = 2  # index of the test file; no model is trained with its handwriting
CAPTIONS = 5
# What the answers of a kind of question are among.
CANDIDATES = {**VALUES, "count": [DIGITS[count] for count in COUNTS]}
TEMPERATURE = 0.3  # of drawing: so small a model is not sure of its codes
PROMPTS = ("a red zero", "a green three", "a blue seven", "a white one")


@dataclass(frozen=True)
class Example:
    """An image, a text that goes with it, the answers to choose among, and the right one.

    The answer about a phrase is its box, `x0,y0,x1,y1` in pixels.
    """

    image: str
    text: str
    truth: str
    candidates: tuple[str, ...] = ()


def captions(folder: Path) -> list[Example]:
    """Writes images of one digit; the answers are their captions."""
    rows = ((number, _row(CAPTION, number)) for number in range(CAPTIONS))
    return [Example(_image(row, folder / f"caption_{number}.png"), "", str(row[2])) for number, row in rows]


def questions(folder: Path) -> list[Example]:
    """Writes images with a question each: color, digit, position, number."""
    made = []
    for kind, values in CANDIDATES.items():
        number = len(KINDS) + KINDS.index(kind)  # of the second turn
        row = _row(VQA_GEN, number)
        truth = str(row[3]).split(CONFIDENCE_MARK)[-1]
        image = _image(row, folder / f"question_{number}.png")
        made.append(Example(image, str(row[2]), truth, tuple(values)))
    return made


def phrases(folder: Path) -> list[Example]:
    """Writes images with a phrase each, of each form without a relation."""
    rows = ((number, _row(REFCOCO, number)) for number in range(len(PHRASES)))
    return [Example(_image(row, folder / f"phrase_{number}.png"), str(row[2]), str(row[3])) for number, row in rows]


def instructions(folder: Path) -> list[tuple[str, str]]:
    """Writes images with an instruction each, as the tasks word them."""
    caption, question, phrase = captions(folder)[0], questions(folder)[0], phrases(folder)[0]
    return [
        (caption.image, prompt("caption", None).strip()),
        (question.image, question.text),
        (phrase.image, prompt("refcoco", None).format(text=phrase.text).strip()),
        (phrase.image, prompt("pretrain detection", None).strip()),
    ]


def _row(task: DemoTask, number: int) -> Row:
    return task.row(TEST, number, SEED, SIDE)


def _image(row: Row, path: Path) -> str:
    scene = next(column for column in row if isinstance(column, Scene))
    render(scene).save(path)
    return str(path)
