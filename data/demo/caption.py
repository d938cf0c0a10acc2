"""Captioning data: one digit in each picture; the caption names digit, colour and position."""

import base64
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.demo.digits import SPLITS, load_digit_samples
from data.demo.scene import Scene, random_scene, render
from data.demo.words import COLOURS, DIGITS, POSITIONS, object_name, object_phrase

FILES = {"train": "caption_stage1_train.tsv", "val": "caption_val.tsv", "test": "caption_test.tsv"}
COCO_FILE = "test_caption_coco_format.json"
BLANK_FILE = "caption_blank.tsv"  # the test rows with nothing on the canvas: what guessing is worth
_FIRST_IMAGE = {"train": 100_000, "val": 200_000, "test": 300_000}


def scene_caption(scene: Scene) -> str:
    """Caption of a scene: its objects in order, joined by "and"."""
    return " and ".join(object_phrase(item.colour, item.digit, item.position) for item in scene.objects)


def all_captions() -> list[str]:
    """Every caption a scene of one digit can have."""
    kinds = itertools.product(COLOURS, range(len(DIGITS)), POSITIONS)
    return [object_phrase(colour, digit, position) for colour, digit, position in kinds]


def caption_scene(split: str, number: int, seed: int, size: int) -> Scene:
    """Scene of row `number` of a split; it depends on no other row."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    return random_scene(load_digit_samples(split), rng, size)


def encode_scene(scene: Scene) -> str:
    """URL-safe base64 of the drawn scene as a JPEG file of high quality."""
    file = io.BytesIO()
    render(scene).save(file, "JPEG", quality=92, subsampling=0)  # subsampling smears thin coloured strokes
    return base64.urlsafe_b64encode(file.getvalue()).decode("ascii")


def write_caption_data(folder: Path, counts: dict[str, int], seed: int, size: int) -> None:
    """Write the TSV file of each split, a blank one, and the test references as a COCO caption annotation file.

    Args:
        folder: existing folder for the five files.
        counts: rows of each split.
        seed: the same seed gives the same bytes.
        size: side of the pictures in pixels.
    """
    for split in SPLITS:
        captions = _write_rows(folder / FILES[split], split, counts[split], seed, size)
    (folder / COCO_FILE).write_text(json.dumps(_coco_annotations(captions)), encoding="utf-8")
    _write_rows(folder / BLANK_FILE, "test", counts["test"], seed, size, blank=True)


def _write_rows(path: Path, split: str, count: int, seed: int, size: int, blank: bool = False) -> dict[str, str]:
    """Write one file, with empty canvases if `blank`; returns the caption of each image id."""
    captions = {}
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for number in range(count):
            scene = caption_scene(split, number, seed, size)
            image_id = str(_FIRST_IMAGE[split] + number)
            captions[image_id] = scene_caption(scene)
            labels = "&&".join(object_name(item.colour, item.digit) for item in scene.objects)
            picture = encode_scene(replace(scene, objects=()) if blank else scene)
            file.write("\t".join((str(number), image_id, captions[image_id], labels, picture)) + "\n")
    return captions


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
