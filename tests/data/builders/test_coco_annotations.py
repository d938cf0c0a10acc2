"""Annotation files: both forms of phrases, VQA's soft scores, kinds of answers, and entries that make no sense."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.builders.coco_annotations import Annotations, BadEntries, answer_kind, group_answers, soft_scores
from utils.errors import UserError

IMAGES = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
INSTANCES: dict[str, Any] = {
    "images": IMAGES,
    "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dining  table"}],
    "annotations": [
        {"id": 50, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "segmentation": [[0, 0]]},
        {"id": 51, "image_id": 1, "category_id": 9, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ],
}


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


def test_instances_without_crowds(save: Any) -> None:
    found = Annotations(BadEntries(False))
    found.add_instances(save("i.json", INSTANCES))
    assert found.categories == {7: "cat", 9: "dining table"}
    assert found.images[1].objects == [((1.0, 2.0, 3.0, 4.0), "7", "cat")]
    assert found.images[1].is_used() and not found.images[2].is_used()


@pytest.mark.parametrize(
    "entry, texts, box",
    [
        ({"id": 3, "image_id": 1, "caption": "left  cat", "bbox": [5, 6, 7, 8]}, ["left cat"], (5, 6, 7, 8)),
        ({"image_id": 1, "phrase": "a&&b", "bbox": [5, 6, 7, 8]}, ["a&b"], (5, 6, 7, 8)),
        (
            {"image_id": 1, "sentences": [{"sent": "x", "raw": "X"}, {"raw": "y"}], "ann_id": 50},
            ["x", "y"],
            (1, 2, 3, 4),
        ),
        ({"image_id": 1, "sentences": ["one", "two"], "ann_id": 50}, ["one", "two"], (1, 2, 3, 4)),
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_phrases(save: Any, entry: dict[str, Any], texts: list[str], box: tuple[int, ...], bare: bool) -> None:
    found = Annotations(BadEntries(False))
    found.add_instances(save("i.json", INSTANCES))
    found.add_phrases(save("r.json", [entry] if bare else {"annotations": [entry]}))
    assert [region.text for region in found.images[1].phrases] == texts
    assert {region.box for region in found.images[1].phrases} == {box}


def test_soft_scores_are_the_released_ones() -> None:
    people = ["no"] + ["two"] * 2 + ["red"] * 3 + ["yes"] * 4
    assert soft_scores(people) == {"yes": 1.0, "red": 0.9, "two": 0.6, "no": 0.3}
    assert soft_scores(["cat"]) == {"cat": 1.0} and soft_scores(["cat", "", "dog"]) == {"cat": 0.5, "dog": 0.5}
    with pytest.raises(ValueError, match="no answers"):
        soft_scores(["", ""])


def test_kinds_of_answers() -> None:
    assert answer_kind("Is it?", "is it", "yes/no") == "yes/no"
    assert answer_kind("How many cats?", "how many", "number") == "how many"
    assert answer_kind("What color?", "what color", "other") == "what color" and answer_kind("Why?", "", "") == "other"
    counts = Counter({
        ("yes", "yes/no"): 9, ("no", "yes/no"): 8, ("red", "what color"): 4, ("blue", "what color"): 3,
        ("yes", "what color"): 1, ("rain", "why"): 2, ("2", "how many"): 2,
    })  # fmt: skip
    assert group_answers(counts) == {
        "other": ["rain", "yes"], "how many": ["2", "1"], "yes/no": ["yes", "no"], "what color": ["red", "blue"]
    }  # fmt: skip
    assert group_answers(Counter()) == {"other": ["yes", "no"], "how many": ["1", "2"]}


BAD = [
    ("annotations", {"image_id": 1}, "annotations[0]: it has no 'category_id'"),
    ("annotations", {"image_id": 8, "category_id": 7, "bbox": [0, 0, 1, 1]}, "no file lists an image 8"),
    ("annotations", {"image_id": 1, "category_id": 8, "bbox": [0, 0, 1, 1]}, "there is no category 8"),
    ("annotations", {"image_id": 1, "category_id": 7, "bbox": [0, 0, 1]}, "is not x, y, width, height"),
    ("annotations", {"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, float("inf")]}, "is not finite"),
    ("annotations", {"image_id": [], "category_id": 7, "bbox": [0, 0, 1, 1]}, "unhashable"),
    ("annotations", 5, "annotations[0]: "),
    ("categories", {"id": 1, "name": " ?"}, "categories[0]: the name has no words"),
    ("images", {"id": 3}, "images[0]: it has no 'file_name'"),
]


@pytest.mark.parametrize("key, entry, words", BAD)
def test_bad_entries_are_named_or_counted(save: Any, key: str, entry: Any, words: str) -> None:
    path = save("i.json", {**INSTANCES, key: [entry, *INSTANCES[key]]})
    with pytest.raises(UserError) as caught:
        Annotations(BadEntries(False)).add_instances(path)
    assert str(caught.value).startswith(f"{path}, {key}[0]: ") and words in str(caught.value)
    assert "--skip-bad-rows" in str(caught.value)
    bad = BadEntries(True)
    found = Annotations(bad)
    found.add_instances(path)
    assert bad.count == 1 and len(found.images[1].objects) == 1


def test_questions_need_both_files(save: Any) -> None:
    found = Annotations(BadEntries(False))
    found.add_captions(save("c.json", {"images": IMAGES, "annotations": []}))
    questions = save("q.json", {"questions": [{"question_id": 4, "image_id": 2, "question": "How many cats?"}]})
    answer = {"question_id": 4, "image_id": 2, "answers": [{"answer": "2"}] * 9 + [{"answer": "3"}]}
    found.add_questions(questions, save("a.json", {"annotations": [answer]}))
    (question,) = found.images[2].questions
    assert question == ("4", "How many cats?", {"2": 1.0, "3": 0.3}, "how many")
    assert found.answer_kinds == {("2", "how many"): 1}
    with pytest.raises(UserError, match="has no question 5"):
        found.add_questions(questions, save("a.json", {"annotations": [{**answer, "question_id": 5}]}))


def test_files_that_are_something_else(save: Any, tmp_path: Path) -> None:
    found = Annotations(BadEntries(True))
    with pytest.raises(UserError, match="nowhere.json cannot be read"):
        found.add_captions(tmp_path / "nowhere.json")
    (tmp_path / "torn.json").write_text('{"images": [')
    with pytest.raises(UserError, match="torn.json is not a JSON file"):
        found.add_captions(tmp_path / "torn.json")
    contents: list[Any] = [[], {"images": IMAGES}, {"annotations": {}}]
    for content in contents:
        with pytest.raises(UserError, match="has no list 'annotations'"):
            found.add_captions(save("c.json", content))
