"""Demo entailment: the label follows from the image and from nothing else."""

from collections import Counter, defaultdict

import pytest

from digits.scene import Scene
from digits.tasks import TASKS
from digits.words import DIGITS, VALUES, DigitSpec

TASK = TASKS["snli_ve"]


def table(count: int, file: int = 0) -> list[tuple[Scene, str, str, str]]:
    rows = [TASK.row(file, number, 1, 48) for number in range(count)]
    return [(row[2], str(row[3]), str(row[4]), str(row[5])) for row in rows if isinstance(row[2], Scene)]


def position_of(hypothesis: str) -> str:
    return max((name for name in VALUES["position"] if f"at the {name}" in hypothesis), key=len)


def claimed(text: str, spec: DigitSpec) -> bool:
    """Whether every digit and color word of the text is the spec's."""
    words = [word for word in text.split() if word in (*DIGITS, *VALUES["colour"])]
    return bool(words) and set(words) <= {spec.colour, spec.digit}


@pytest.mark.parametrize("file", range(3))
def test_label_follows_from_the_image(file: int) -> None:
    for scene, hypothesis, _, label in table(150, file):
        place = position_of(hypothesis)
        if place == scene.card:
            assert label == "neutral"
            continue
        (spec,) = (each for each in scene.specs if each.position == place)
        assert label == ("entailment" if claimed(hypothesis, spec) else "contradiction")


def test_caption_is_true_and_about_another_digit() -> None:
    for scene, hypothesis, caption, _ in table(150):
        told = scene.specs[0]
        assert claimed(caption, told) and told.position != position_of(hypothesis)
        assert caption.endswith(("other things", "more"))
        assert scene.card is not None and scene.card not in [spec.position for spec in scene.specs]


def test_words_of_the_texts_say_nothing_about_the_label() -> None:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for _, hypothesis, caption, label in table(6000):
        for word in {*hypothesis.split(), *(f"caption {word}" for word in caption.split())}:
            counts[word][label] += 1
    for word, labels in counts.items():
        if labels.total() > 500:
            assert max(labels.values()) / labels.total() < 0.42, word


def test_ids() -> None:
    rows = [TASK.row(0, number, 1, 48) for number in range(3)]
    assert [row[:2] for row in rows] == [("0", "100000.jpg#0"), ("1", "100001.jpg#0"), ("2", "100002.jpg#0")]
