"""Captioning data: one digit in each picture; the caption names digit, colour and position."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

from data.demo.rows import DemoTask, Lot, Row, write_rows
from data.demo.scene import Scene
from data.demo.words import POSITIONS, VALUES, Thing

COCO_FILE = "test_caption_coco_format.json"
BLANK_FILE = "caption_blank.tsv"  # the test rows with nothing on the canvas: what guessing is worth
_TEST = 2  # index of the test file


def scene_caption(scene: Scene) -> str:
    """Caption of a scene: its objects in order, joined by "and"."""
    return " and ".join(thing.phrase for thing in scene.things)


def all_captions() -> list[str]:
    """Every caption a scene of one digit can have."""
    return [Thing(*values).phrase for values in itertools.product(*VALUES.values())]


def caption_row(lot: Lot) -> Row:
    """Number, image id, caption, object names, picture."""
    scene = lot.scene(1)
    return str(lot.number), str(lot.id), scene_caption(scene), _names(scene), scene


def _names(scene: Scene) -> str:
    return "&&".join(thing.name for thing in scene.things)


def scenes_row(lot: Lot) -> Row:
    """As `caption_row`, for one to three digits in reading order; validation has one."""
    scene = lot.scene(1 + lot.number % 3 if lot.split == "train" else 1)
    places = list(POSITIONS)
    scene = replace(scene, objects=tuple(sorted(scene.objects, key=lambda item: places.index(item.thing.position))))
    return str(lot.number), str(lot.id), scene_caption(scene), _names(scene), scene


class CaptionTask(DemoTask):
    """Adds a file of blank test pictures and the test references as a COCO caption annotation file."""

    @property
    def salt(self) -> tuple[int, ...]:
        """None: the first task of all."""
        return ()

    def write(self, folder: Path, counts: dict[str, int], seed: int, size: int) -> None:
        """Write the five files; see the base."""
        super().write(folder, counts, seed, size)
        rows = [self.row(_TEST, number, seed, size) for number in range(counts["test"])]
        captions = {str(row[1]): str(row[2]) for row in rows}
        (folder / COCO_FILE).write_text(json.dumps(_coco_annotations(captions)), encoding="utf-8")
        write_rows(folder / BLANK_FILE, (tuple(map(_blank, row)) for row in rows))

    def texts(self) -> list[str]:
        """Every caption."""
        return all_captions()


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


CAPTION = CaptionTask(
    folder="caption_data",
    files=(("train", "caption_stage1_train.tsv"), ("val", "caption_val.tsv"), ("test", "caption_test.tsv")),
    make_row=caption_row,
    text_columns=(2, 3),
    chance=1 / len(all_captions()),  # exact captions
)
# What the demo of all tasks starts from: a network that tells several digits apart.
SCENES = DemoTask(
    folder="scenes/caption_data",
    files=(("train", "caption_stage1_train.tsv"), ("val", "caption_val.tsv")),
    make_row=scenes_row,
    text_columns=(2,),
    chance=CAPTION.chance,
)
