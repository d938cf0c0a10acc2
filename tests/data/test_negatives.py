"""Wrong captions and answers: never the right one, and drawn at the rates of the recipe."""

import json
import math
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from data.negatives import Negatives
from utils.errors import UserError

FOLDER = Path(__file__).parents[1] / "golden" / "tsv" / "pretrain" / "negative_sample"
DRAWS = 20_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "negatives"))


def close(count: int, share: float, draws: int = DRAWS) -> bool:
    """Whether a share is within three standard errors."""
    return abs(count / draws - share) <= 3 * math.sqrt(share * (1 - share) / draws)


def test_objects_are_exchanged_in_two_fifths_of_captions(folder: Path) -> None:
    negatives, rng = Negatives.load(folder), random.Random(0)
    drawn = Counter(negatives.caption("A Dog and a dog chase", ["dog", "kite", ""], 80, rng) for _ in range(DRAWS))
    assert "a dog and a dog chase" not in drawn
    swapped = {text: count for text, count in drawn.items() if text.startswith("a dog and a ")}
    assert set(swapped) == {
        f"a dog and a {name} chase" for name in ("fire hydrant", "cup", "kite", "traffic light", "person")
    }
    # A sixth of the lines is blank and drawn again.
    lines = 0.6 * 5 / 6
    assert close(sum(swapped.values()), 0.4 / (0.4 + lines))
    assert close(drawn["a dog runs on the beach"], lines / 5 / (0.4 + lines))
    # Of six names the last one stands in for the object itself, and else is not drawn.
    assert close(swapped["a dog and a person chase"], 0.2, sum(swapped.values()))
    assert drawn["an old red brick house"] and drawn["children eat ice cream cake"]


def test_captions_differ_after_normalization(folder: Path) -> None:
    (folder / "all_captions.txt").write_text("A  Dog\n\na cat\n a-dog \n")
    negatives, rng = Negatives.load(folder), random.Random(0)
    # "bird" is not in the caption: an exchange would leave it as it is.
    assert {negatives.caption("#a dog", ["bird"], 80, rng) for _ in range(50)} == {"a cat"}
    # Words beyond the limit make no difference.
    assert {negatives.caption("a cat sits", ["sits"], 2, rng) for _ in range(50)} == {"a dog"}


def test_no_other_caption(folder: Path) -> None:
    (folder / "all_captions.txt").write_text("A dog\n")
    with pytest.raises(ValueError, match="has no caption that differs from 'a dog'"):
        Negatives.load(folder).caption("a dog", [], 80, random.Random(0))


@pytest.mark.parametrize("confidence, share", [(1.0, 0.9), (0.6, 0.5), (0.1, 0.0)])
def test_sure_answers_get_close_alternatives(folder: Path, confidence: float, share: float) -> None:
    negatives, rng = Negatives.load(folder), random.Random(0)
    drawn = Counter(negatives.answer("red", confidence, rng) for _ in range(DRAWS))
    colors = {"orange", "blue", "black and white"}
    assert close(sum(drawn[name] for name in colors), share)
    assert set(drawn) <= colors | {"cat", "coffee", "left", "rocket launch", "nasa", "wood"}


def test_numbers_move_by_one(folder: Path) -> None:
    negatives, rng = Negatives.load(folder), random.Random(0)
    negatives.types["0"] = "how many"
    drawn = Counter(negatives.answer("2", 1.1, rng) for _ in range(DRAWS))  # above 1: always its own type
    assert set(drawn) == {"1", "3", "10"}
    # Half are steps; the other half 1, 3 or, in place of 2, the last one.
    assert close(drawn["1"], 0.25 + 0.5 / 3) and close(drawn["10"], 0.5 / 3)
    assert "-1" not in {negatives.answer("0", 1.1, rng) for _ in range(500)}


def test_unknown_answers_get_others(folder: Path) -> None:
    negatives, rng = Negatives.load(folder), random.Random(0)
    drawn = Counter(negatives.answer("wood", 1.0, rng) for _ in range(DRAWS))
    assert "wood" not in drawn and all(close(count, 1 / 5) for count in drawn.values()) and len(drawn) == 5


def test_last_type_of_an_answer_wins(folder: Path) -> None:
    (folder / "type2ans.json").write_text(json.dumps({"a": ["x", "y"], "b": ["x", "z", "z "], "other": ["x", "w"]}))
    negatives, rng = Negatives.load(folder), random.Random(0)
    assert {negatives.answer("x", 1.1, rng) for _ in range(50)} == {"z"}


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("all_captions.txt", None, "There is no file .*all_captions.txt; --neg-sample-dir"),
        ("object.txt", None, "There is no file .*object.txt"),
        ("type2ans.json", None, "There is no file .*type2ans.json"),
        ("all_captions.txt", "\n", "has no rows"),
        ("object.txt", "dog\n\ndog\n", "needs at least two names"),
        ("type2ans.json", "{", "is not a JSON object"),
        ("type2ans.json", '["yes"]', "is not a JSON object"),
        ("type2ans.json", '{"other": 3}', "is not a JSON object"),
        ("type2ans.json", '{"color": ["red", "blue"]}', "at least two answers of type 'other'"),
        ("type2ans.json", '{"color": ["red"], "other": ["a", "b"]}', "at least two answers of type 'color'"),
    ],
)
def test_unfit_files(folder: Path, name: str, content: str | None, reason: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=reason):
        Negatives.load(folder)
