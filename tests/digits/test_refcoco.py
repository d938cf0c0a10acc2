"""Demo phrases: one digit fits, and its box is around it."""

import re

import numpy as np
import pytest

from data.boxes import parse_box
from digits.refcoco import COUNTS
from digits.scene import Scene, render
from digits.tasks import TASKS, chance
from digits.words import POSITIONS, DigitSpec

TASK = TASKS["refcoco"]


def table(count: int, file: int = 0) -> list[tuple[str, str, Scene]]:
    rows = [TASK.row(file, number, 1, 48) for number in range(count)]
    return [(str(row[2]), str(row[3]), row[4]) for row in rows if isinstance(row[4], Scene)]


def fits(phrase: str, spec: DigitSpec, others: list[DigitSpec]) -> bool:
    """Whether the phrase can mean the spec, word by word."""
    if found := re.fullmatch(r"the digit (above|below|left|right)(?: of)? the (\w+ \w+)", phrase):
        (other,) = (each for each in others if each.name == found[2])
        (column, row), (other_column, other_row) = POSITIONS[spec.position], POSITIONS[other.position]
        level = {"left": column < other_column, "right": column > other_column}
        return {"above": row < other_row, "below": row > other_row}.get(
            found[1], row == other_row and level.get(found[1], False)
        )
    start, _, position = phrase.partition(" at the ")
    words = {spec.colour, spec.digit, "digit", "the"}
    return set(start.split()) <= words and position in ("", spec.position)


@pytest.mark.parametrize("file", range(4))
def test_phrase_fits_one_digit_and_the_box_is_its_own(file: int) -> None:
    for phrase, box, scene in table(100, file):
        (item,) = (each for each in scene.objects if fits(phrase, each.spec, scene.specs))
        assert parse_box(box, 48, 48) == [float(edge) for edge in item.box]
        assert all(0 <= float(edge) <= 48 for edge in box.split(","))


def test_only_the_box_changes_when_its_digit_is_drawn() -> None:
    for _, box, scene in table(20):
        left, top, right, bottom = (int(float(edge)) for edge in box.split(","))
        others = tuple(item for item in scene.objects if item.box != (left, top, right, bottom))
        without = Scene(others, scene.size, scene.texture_seed)
        changed = np.argwhere((np.asarray(render(scene)) != np.asarray(render(without))).any(axis=-1))
        assert len(others) == len(scene.objects) - 1
        assert changed.min(axis=0).tolist() >= [top, left] and (changed.max(axis=0) < [bottom, right]).all()
        assert np.ptp(changed, axis=0).tolist() >= [(bottom - top) * 0.7, (right - left) * 0.5]


def test_chance_is_pointing_at_any_digit() -> None:
    counts = [len(scene.objects) for _, _, scene in table(1000)]
    assert set(counts) == set(COUNTS)
    assert sum(1 / count for count in counts) / len(counts) == pytest.approx(chance("refcoco"), abs=0.02)


def test_the_two_test_files_differ() -> None:
    assert [name for _, name in TASK.files[2:]] == ["refcoco_testA.tsv", "refcoco_testB.tsv"]
    assert not {box for _, box, _ in table(5, 2)} & {box for _, box, _ in table(5, 3)}
