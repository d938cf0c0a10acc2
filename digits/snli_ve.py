"""Entailment data: a claim about an image in which a card hides one position, and a caption that tells little."""

from dataclasses import replace

from data.snli_ve import WORDS
from digits.claims import LABELS, claim
from digits.rows import DemoTask, Row, RowContext
from digits.words import VALUES

COUNTS = (2, 3)  # digits of a scene: one for the caption, the others for the claim
CAPTIONS = (
    "a {colour} {digit} at the {position} and other things",
    "a {colour} {digit} among other things",
    "a card , a {colour} digit and more",
)


def snli_ve_row(context: RowContext) -> Row:
    """Number, image name, image, hypothesis, caption, label.

    Claims about the hidden position are neutral. The claim is never about the digit of the caption, so the texts
    alone say nothing about the label.
    """
    label = LABELS[context.number % len(LABELS)]
    scene = context.scene(context.choose(COUNTS))
    told, *known = scene.specs
    taken = [spec.position for spec in scene.specs]
    card = context.choose([position for position in VALUES["position"] if position not in taken])
    hypothesis = claim(context, label, known, [card])
    caption = told.fill(context.choose(CAPTIONS))
    return str(context.number), f"{context.id}.jpg#0", replace(scene, card=card), hypothesis, caption, label


SNLI_VE = DemoTask(
    folder="snli_ve_data",
    files=(("train", "snli_ve_train.tsv"), ("val", "snli_ve_dev.tsv"), ("test", "snli_ve_test.tsv")),
    make_row=snli_ve_row,
    text_columns=(3, 4),
    chance=1 / len(LABELS),
    words=tuple(WORDS.values()),
)
