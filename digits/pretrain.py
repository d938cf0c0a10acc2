"""Pretraining data: the five files and the wrong texts for matching, from digit scenes and the texts of the tasks."""

import json
from dataclasses import replace
from pathlib import Path

from data.negatives import ANSWER_FILE, CAPTION_FILE, HOW_MANY, OBJECT_FILE, OTHER
from digits.caption import CAPTION, caption_row
from digits.gigaword import GIGAWORD
from digits.glue import GLUE_TASKS
from digits.image_gen import image_gen_row
from digits.refcoco import refcoco_row
from digits.rows import DemoTask, Row, RowContext
from digits.scene import Scene
from digits.vqa_gen import ANSWERS, COUNTS, vqa_row
from digits.words import COLOURS, DIGITS, VALUES
from utils.constants import SEPARATOR

SOURCE = "digits"  # name of the dataset
CODED_SIZE = 64  # side in pixels of the images whose middle is told in codes
_TEXTS = (GIGAWORD, GLUE_TASKS["mnli"], GLUE_TASKS["qqp"], GLUE_TASKS["sst2"])
_NAMES = [f"{colour} {digit}" for colour in COLOURS for digit in DIGITS]


def image_text_row(context: RowContext) -> Row:
    """Id, image, caption, question, answers or box, objects, name of the dataset, type; the types in turn."""
    turn, kind = divmod(context.number, 3)
    context = replace(context, number=turn)
    if kind == 0:
        _, uniq_id, caption, objects, scene = caption_row(context)
        return uniq_id, scene, caption, "", "", objects, SOURCE, "caption"
    if kind == 1:
        uniq_id, _, question, answers, _, scene = vqa_row(context)
        return uniq_id, scene, "", question, answers, "", SOURCE, "qa"
    _, uniq_id, phrase, box, scene = refcoco_row(context)
    return uniq_id, scene, phrase, "", box, "", SOURCE, "visual_grounding"


def text_row(context: RowContext) -> Row:
    """Id and a text of another task's training rows."""
    task = context.choose(_TEXTS)
    texts = task.row_texts(task.row(0, int(context.rng.integers(2**31)), 0, context.size))
    return str(context.id), context.choose(texts)


def image_row(context: RowContext) -> Row:
    """Id and an image; `utils.image_codes` adds the codes of its middle."""
    return str(context.id), replace(context, size=CODED_SIZE).scene(context.choose(COUNTS))


def described_row(context: RowContext) -> Row:
    """As text-to-image generation, in images of as many codes as the middles of the others."""
    return image_gen_row(context, CODED_SIZE // 2)


def detection_row(context: RowContext) -> Row:
    """Id, image and its digits in reading order, `x0,y0,x1,y1,category_id,name` joined by `&&`."""
    scene = caption_row(context)[-1]
    assert isinstance(scene, Scene)
    objects = SEPARATOR.join(
        ",".join(map(str, (*item.box, _NAMES.index(item.spec.name), item.spec.name))) for item in scene.objects
    )
    return str(context.id), scene, objects


_FOLDER = "pretrain_data"
EXTRA_FILES = tuple(
    DemoTask(_FOLDER, (("train", name),), make_row, text_columns, chance=CAPTION.chance)
    for name, make_row, text_columns in (
        ("text_examples.tsv", text_row, (1,)),
        ("picture_examples.tsv", image_row, ()),
        ("detection_examples.tsv", detection_row, ()),
        ("described_examples.tsv", described_row, (3,)),
    )
)
EXTRA_SHARE = 4  # rows of the main file for each row of another one


class PretrainTask(DemoTask):
    """Adds the other files, and what wrong texts are drawn from."""

    def write(self, folder: Path, counts: dict[str, int], seed: int, size: int) -> None:
        """Write all files; see the base."""
        super().write(folder, counts, seed, size)
        extra = {split: -(-count // EXTRA_SHARE) for split, count in counts.items()}
        for task in EXTRA_FILES:
            task.write(folder, extra, seed, size)
        rows = (self.row(0, number, seed, size) for number in range(counts["train"]))
        captions = dict.fromkeys(str(row[2]) for row in rows if row[2])
        answers = {kind: list(values) for kind, values in VALUES.items()}
        answers |= {HOW_MANY: [DIGITS[count] for count in COUNTS], "yes/no": ["yes", "no"], OTHER: list(ANSWERS)}
        negatives = folder / "negative_sample"
        negatives.mkdir(exist_ok=True)
        for name, text in (
            (CAPTION_FILE, "".join(f"{caption}\n" for caption in captions)),
            (OBJECT_FILE, "".join(f"{name}\n" for name in _NAMES)),
            (ANSWER_FILE, json.dumps(answers)),
        ):
            (negatives / name).write_text(text, encoding="utf-8", newline="\n")

    def texts(self) -> list[str]:
        """Those of the rows, and the fragments of matching."""
        return [*super().texts(), "yes", "no"]


PRETRAIN = PretrainTask(
    folder=_FOLDER,
    files=(("train", "vision_language_examples.tsv"),),
    make_row=image_text_row,
    text_columns=(2, 3),
    chance=CAPTION.chance,
)
