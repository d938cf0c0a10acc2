"""Demo GLUE texts: labels are what the texts deserve, worked out from the words alone."""

import re

import pytest

from data.glue import GLUE
from digits.glue import ADJECTIVES
from digits.tasks import TASKS
from digits.words import DIGITS, VALUES, DigitSpec

# longest names first: "top left" before "top"
PLACES = "|".join(sorted(VALUES["position"], key=len, reverse=True))
COLOURS, WORDS = "|".join(VALUES["colour"]), "|".join(DIGITS)
STATED = re.compile(
    rf"a ({COLOURS}) ({WORDS}) (?:is )?at the ({PLACES})\b|the ({PLACES}) shows a ({COLOURS}) ({WORDS})"
)


def table(name: str, count: int = 300) -> list[list[str]]:
    task = TASKS[name]
    return [[str(each) for each in task.row(number % 2, number, 1, 48)] for number in range(count)]


def read(sentence: str) -> set[DigitSpec]:
    """What a sentence states; every part of it must be understood."""
    parts = re.sub("^there is ", "", sentence).split(" and ")
    found = [STATED.fullmatch(part) for part in parts]
    assert all(found), sentence
    return {DigitSpec(m[1] or m[5], m[2] or m[6], m[3] or m[4]) for m in found if m}


def verdict(premise: str, hypothesis: str) -> str:
    """What the premise says about the hypothesis."""
    (place,) = re.findall(rf"at the ({PLACES})\b", hypothesis)
    claimed = {word for word in hypothesis.split() if word in (*VALUES["colour"], *DIGITS)}
    for spec in read(premise):
        if spec.position == place:
            return "entailment" if claimed <= {spec.colour, spec.digit} else "contradiction"
    return "neutral"


def test_mnli() -> None:
    for premise, hypothesis, label in table("mnli"):
        assert verdict(premise, hypothesis) == ("neutral", "entailment", "contradiction")[int(label)]


def test_rte() -> None:
    verdicts = []
    for _, premise, hypothesis, label in table("rte"):
        verdicts.append(verdict(premise, hypothesis))
        assert label == ("entailment" if verdicts[-1] == "entailment" else "not_entailment")
    assert verdicts.count("neutral") == verdicts.count("contradiction") == 75


def test_mrpc() -> None:
    for first, second, label in table("mrpc"):
        assert (read(first) == read(second)) == (label == "1") and first != second


def answered(question: str, specs: set[DigitSpec]) -> bool:
    """Whether one of the specs fits all that the question names."""
    (place,) = re.findall(rf"at the ({PLACES})\b", question) or [None]
    named = set(question.rstrip("?").split()) & {*VALUES["colour"], *DIGITS}
    return any(named <= {spec.colour, spec.digit} and place in (None, spec.position) for spec in specs)


def test_qnli() -> None:
    for _, question, sentence, label in table("qnli"):
        assert answered(question, read(sentence)) == (label == "entailment"), (question, sentence)


def asked(question: str) -> tuple[str, ...]:
    """What a question asks and about what."""
    question = question.rsplit(" , ", 1)[-1].rsplit(" : ", 1)[-1]
    kind = next(kind for words, kind in KINDS.items() if words in question)
    return kind, *re.findall(rf"\b(?:{COLOURS}|{WORDS}|{PLACES})\b", question)


KINDS = {"where": "position", "at which place": "position", "position": "position", "color": "colour"}
KINDS |= {"which digit": "digit", "what number": "digit", "name": "digit"}


def test_qqp() -> None:
    for _, first_id, second_id, first, second, label in table("qqp"):
        assert first_id != second_id and first != second
        assert (sorted(asked(first)) == sorted(asked(second))) == (label == "1"), (first, second)


def test_cola() -> None:
    for source, sentence, label in table("cola"):
        assert source == "demo"
        if label == "1":
            assert read(sentence)
        else:
            with pytest.raises(AssertionError):
                read(sentence)


def test_sst2() -> None:
    for sentence, label in table("sst2"):
        (adjective,) = (word for word in sentence.split() if word in ADJECTIVES[0] + ADJECTIVES[1])
        assert adjective in ADJECTIVES[int(label)]


@pytest.mark.parametrize("name", GLUE)
def test_files_and_labels_are_the_released_ones(name: str) -> None:
    task = TASKS[name]
    assert task.files == (("train", f"{name}_train.tsv"), ("val", f"{name}_dev.tsv"))
    assert task.folder == "glue_data" and {row[-1] for row in table(name, 12)} <= set(GLUE[name].words)
    assert set(task.words) == set(GLUE[name].words.values())
