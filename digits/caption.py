"""Captioning data: captions name digit, color and position of all digits, in reading order."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from digits.rows import DemoTask, Row, RowContext, write_rows
from digits.scene import Scene
from digits.words import POSITIONS, VALUES, DigitSpec
from utils.constants import SEPARATOR

COCO_FILE = "test_caption_coco_format.json"
BLANK_FILE = "caption_blank.tsv"  # the test rows with nothing on the canvas: what guessing is worth
MORE_DIGITS = {2: "two_digits", 3: "three_digits"}  # digits of an image -> name of a further test split
_TEST = 2  # index of the test file


def scene_caption(scene: Scene) -> str:
    """Caption of a scene: its objects in order, joined by "and"."""
    return " and ".join(spec.phrase for spec in scene.specs)


def all_captions() -> list[str]:
    """Every caption a scene of one digit can have."""
    return [DigitSpec(*values).phrase for values in itertools.product(*VALUES.values())]


def caption_row(context: RowContext, count: int | None = None) -> Row:
    """Number, image id, caption, object names, image; without a count one to three digits to train, else one."""
    scene = context.scene(count or (1 + context.number % 3 if context.split == "train" else 1))
    places = list(POSITIONS)
    scene = replace(scene, objects=tuple(sorted(scene.objects, key=lambda item: places.index(item.spec.position))))
    names = SEPARATOR.join(spec.name for spec in scene.specs)
    return str(context.number), str(context.id), scene_caption(scene), names, scene


class CaptionTask(DemoTask):
    """Adds test files of more digits and of blank images, and the references as a COCO caption annotation file."""

    def write(self, folder: Path, counts: dict[str, int], seed: int, size: int) -> None:
        """Write all files; see the base."""
        super().write(folder, counts, seed, size)
        for count, name in MORE_DIGITS.items():
            _task("caption_data", (("test", f"caption_{name}.tsv"),), count).write(folder, counts, seed, size)
        rows = [self.row(_TEST, number, seed, size) for number in range(counts["test"])]
        captions = {str(row[1]): str(row[2]) for row in rows}
        (folder / COCO_FILE).write_text(json.dumps(_coco_annotations(captions)), encoding="utf-8")
        write_rows(folder / BLANK_FILE, (tuple(map(_blank, row)) for row in rows))

    def texts(self) -> list[str]:
        """Every caption of one digit, and what joins them."""
        return [*all_captions(), " and "]


def _blank(column: str | Scene) -> str | Scene:
    return replace(column, objects=()) if isinstance(column, Scene) else column


def _coco_annotations(captions: dict[str, str]) -> dict[str, object]:
    """One reference for each image id, in the format the COCO caption tools load."""
    return {
        "info": {"description": "Digit scenes drawn from scikit-learn's handwritten digits."},
        "licenses": [],
        "type": "captions",
        "images": [{"id": image_id} for image_id in captions],
        "annotations": [
            {"id": number, "image_id": image_id, "caption": caption}
            for number, (image_id, caption) in enumerate(captions.items())
        ],
    }


def _task(
    folder: str, files: tuple[tuple[str, str], ...], count: int | None, kind: Callable[..., DemoTask] = DemoTask
) -> DemoTask:
    chance = 1 / len(all_captions())  # exact captions
    return kind(folder, files, partial(caption_row, count=count), text_columns=(2,), chance=chance)


_TRAINING = (("train", "caption_stage1_train.tsv"), ("val", "caption_val.tsv"))
_FILES = (*_TRAINING, ("test", "caption_test.tsv"))
# Varied: some 135 samples of a digit are soon known by heart, and the next writer's nine is read as a five.
CAPTION = replace(_task("caption_data", _FILES, None, CaptionTask), varied=True)
# What pretraining begins with: a model from scratch learns to tell digits from images of one.
FIRST_CAPTIONS = _task("first/caption_data", _TRAINING, 1)
