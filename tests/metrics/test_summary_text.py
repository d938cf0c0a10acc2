"""Clean-up of generated summaries."""

import json
from pathlib import Path

import pytest

from metrics.summary_text import clean_summary, retokenize

PAIRS = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())["summary_clean_up"]["pairs"]


@pytest.mark.parametrize("text, expected", PAIRS)
def test_golden_pairs(text: str, expected: str) -> None:
    assert retokenize(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ('" a " " b', "`` a '' `` b"),
        ("' a ' ' b", "` a ' ` b"),
        ("' t", "` t"),  # nothing in front that ends in n
        ("men ' t", "me n't"),
        ("he ' re", "he ` re"),
        (". . . .", "... ."),
        (". .", ". ."),
        ("3 , x", "3 , x"),
        (", , 5", ",,5"),  # commas count as digits here
        ("1,5 . 2", "1,5 . 2"),  # but not here
        ("3 . 5 . 2", "3.5 . 2"),
        ("x . 5", "x . 5"),
        ("a - b - c", "a-b-c"),
        ("a - ' s", "a - 's"),
        (", - b", ", - b"),
        ("( - b", "-lrb--b"),  # a bracket's name is a word
        ("- - -", "-- -"),
        ("  many   blanks  ", "many blanks"),
    ],
)
def test_rules(text: str, expected: str) -> None:
    assert retokenize(text) == expected


def test_hypothesis_as_it_is_scored() -> None:
    text = " In 2011 , the U . S . saw A<unk> <unk> ' s 1 , 010 "
    assert clean_summary(text, validation=True) == "in 20## , the u . s . saw a unk  unk 's #,0#0"
    assert clean_summary(text, validation=False) == "in 20## , the u . s . saw a<unk> <unk> 's #,0#0"
