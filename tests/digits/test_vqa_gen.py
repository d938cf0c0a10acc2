"""Demo questions: exactly one right answer, and none without looking."""

import pickle
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data.vqa_gen import parse_answers
from digits.scene import Scene
from digits.tasks import TASKS, chance
from digits.vqa_gen import ANSWERS
from digits.words import DIGITS, POSITIONS, VALUES, DigitSpec

TASK = TASKS["vqa_gen"]


def right_answers(question: str, specs: list[DigitSpec]) -> set[str]:
    """All answers the scene allows, worked out from the words of the question."""
    if found := re.fullmatch(r"what color is the (\w+)\?", question):
        return {spec.colour for spec in specs if spec.digit == found[1]}
    if found := re.fullmatch(r"which digit is (\w+)\?", question):
        return {spec.digit for spec in specs if spec.colour == found[1]}
    if found := re.fullmatch(r"where is the (\w+ \w+)\?", question):
        return {spec.position for spec in specs if spec.name == found[1]}
    if found := re.fullmatch(r"is there a (\w+ \w+)\?", question):
        return {"yes" if found[1] in {spec.name for spec in specs} else "no"}
    if found := re.fullmatch(r"is the (\w+ \w+) (\w+)(?: of)? the (\w+ \w+)\?", question):
        (first,), (second,) = ([spec for spec in specs if spec.name == found[n]] for n in (1, 3))
        (column, row), (other_column, other_row) = POSITIONS[first.position], POSITIONS[second.position]
        level = {"left": column < other_column, "right": column > other_column}
        true = {"above": row < other_row, "below": row > other_row, **level}[found[2]]
        return {"yes" if true else "no"}
    assert question == "how many digits are there?"
    return {DIGITS[len(specs)]}


def table(count: int, file: int = 0) -> list[tuple[str, str, Scene]]:
    rows = [TASK.row(file, number, 1, 48) for number in range(count)]
    return [(str(row[2]), str(row[3]), row[5]) for row in rows if isinstance(row[5], Scene)]


@pytest.mark.parametrize("file", range(3))
def test_every_question_has_one_right_answer(file: int) -> None:
    for question, column, scene in table(200, file):
        (answer,) = right_answers(question, scene.specs)
        assert parse_answers(column) == {answer: 1.0} and answer in ANSWERS


def test_what_is_asked_of_fits_one_thing_only() -> None:
    for question, _, scene in table(300):
        if question.startswith(("what", "which", "where")):
            named = set(question.rstrip("?").split()) & {*DIGITS, *VALUES["colour"]}
            assert sum(named <= {spec.colour, spec.digit} for spec in scene.specs) == 1


def test_yes_and_no_balance_and_no_is_a_near_miss() -> None:
    asked = [row for row in table(600) if row[0].startswith("is ")]
    exists = [row for row in asked if row[0].startswith("is there")]
    for rows in (exists, [row for row in asked if row not in exists]):
        assert Counter(column for _, column, _ in rows) == {"1.0|!+yes": 50, "1.0|!+no": 50}
    for question, _, scene in exists:
        words = set(question.rstrip("?").split())
        assert any({spec.colour, spec.digit} & words for spec in scene.specs)


def test_guessing_from_the_question_is_worth_chance() -> None:
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question, column, _ in table(5000):
        kinds[" ".join(question.split()[:2])][column] += 1
    best = sum(counts.most_common(1)[0][1] for counts in kinds.values()) / 5000
    assert best == pytest.approx(chance("vqa_gen"), abs=0.02)


def test_ids_and_columns() -> None:
    rows = [TASK.row(file, number, 1, 48) for file in range(3) for number in range(30)]
    ids = [int(str(row[0])) for row in rows]
    assert len(set(ids)) == 90 and [str(row[1]) for row in rows] == [str(number) for number in ids]
    assert all(len(row) == 6 and row[4] == "digit&&canvas" for row in rows)


def test_candidate_file_has_every_answer(tmp_path: Path) -> None:
    TASK.write(tmp_path, {"train": 1, "val": 1, "test": 1}, seed=1, size=48)
    candidates = pickle.loads((tmp_path / "trainval_ans2label.pkl").read_bytes())
    assert candidates == {answer: label for label, answer in enumerate(ANSWERS)} and len(candidates) == 27
    assert {column.partition("|!+")[2] for _, column, _ in table(1500)} == set(candidates)
