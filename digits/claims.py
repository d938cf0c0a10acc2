"""Statements about what is where, and claims that these prove, disprove or leave open."""

from collections.abc import Sequence

from digits.rows import Lot
from digits.words import Thing

LABELS = ("neutral", "entailment", "contradiction")

# what is said of a thing besides its position -> wordings
CLAIMS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("colour", "digit"): (
        "a {colour} {digit} is at the {position}",
        "the digit at the {position} is a {colour} {digit}",
    ),
    ("colour",): ("a {colour} digit is at the {position}", "the digit at the {position} is {colour}"),
    ("digit",): ("the number {digit} is at the {position}", "the digit at the {position} is the number {digit}"),
}

# beginning of a list of things, and each of them
STATEMENTS = (
    ("", "a {colour} {digit} is at the {position}"),
    ("there is ", "a {colour} {digit} at the {position}"),
    ("", "the {position} shows a {colour} {digit}"),
)


def state(things: Sequence[Thing], wording: tuple[str, str]) -> str:
    """A sentence that says all of the things, in one of the `STATEMENTS`."""
    start, each = wording
    return start + " and ".join(thing.fill(each) for thing in things)


def claim(lot: Lot, label: str, known: Sequence[Thing], unknown: Sequence[str]) -> str:
    """A sentence about one position, equally worded whatever its label.

    Args:
        lot: what to draw from.
        label: "entailment" - a known thing is claimed; "contradiction" - with another colour or digit;
            "neutral" - at an unknown position.
        known: things that can be told for sure.
        unknown: positions of which nothing can be told.
    """
    said = lot.choose(list(CLAIMS))
    thing = lot.choose(known)
    if label == "contradiction":
        thing = lot.alter(thing, lot.choose(said))
    if label == "neutral":
        thing = thing._replace(position=lot.choose(unknown))
    return thing.fill(lot.choose(CLAIMS[said]))
