"""Demo reports: the summary is what the report says of colored digits, and can be generated."""

import re

import pytest

from digits.tasks import TASKS, chance
from digits.words import DIGITS, VALUES

TASK = TASKS["gigaword"]
NAME = re.compile(rf"\b({'|'.join(VALUES['colour'])}) ({'|'.join(DIGITS)})\b")


def table(count: int, file: int = 0) -> list[tuple[str, str]]:
    rows = [TASK.row(file, number, 1, 48) for number in range(count)]
    return [(str(report), str(summary)) for report, summary in rows]


@pytest.mark.parametrize("file", range(3))
def test_summary_names_the_digits_in_order(file: int) -> None:
    for report, summary in table(100, file):
        names = [" ".join(found) for found in NAME.findall(report)]
        assert summary == " and ".join(names) and len(names) in (2, 3)
        assert 20 <= len(report.split()) <= 80 and report.endswith(" .")


def test_no_three_words_are_repeated() -> None:
    for _, summary in table(500):
        words = summary.split()
        triples = [tuple(words[start : start + 3]) for start in range(len(words) - 2)]
        assert len(set(triples)) == len(triples)


def test_some_reports_have_numbers_that_do_not_count() -> None:
    for number in ("four hours", "six weeks", "two guards", "three old chairs", "nine cameras"):
        assert any(number in report for report, _ in table(60))


def test_chance_is_the_summary_of_another_row() -> None:
    summaries = [summary.split() for _, summary in table(1500, file=2)]
    scores = [2 * common(a, b) / (len(a) + len(b)) for a, b in zip(summaries, summaries[1:], strict=False)]
    assert 100 * sum(scores) / len(scores) == pytest.approx(chance("gigaword"), abs=2)


def common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence; with recall and precision over it, F1 is 2 * length / sum of sizes."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = lengths[:]
        for place, other in enumerate(second, 1):
            lengths[place] = before[place - 1] + 1 if word == other else max(before[place], lengths[place - 1])
    return lengths[-1]
