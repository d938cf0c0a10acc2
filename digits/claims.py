"""Statements about what is where, and claims that these prove, disprove or leave open."""

from collections.abc import Sequence

from digits.rows import RowContext
from digits.words import DigitSpec

LABELS = ("neutral", "entailment", "contradiction")

# what is said of a spec besides its position -> wordings
CLAIMS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("colour", "digit"): (
        "a {colour} {digit} is at the {position}",
        "the digit at the {position} is a {colour} {digit}",
    ),
    ("colour",): ("a {colour} digit is at the {position}", "the digit at the {position} is {colour}"),
    ("digit",): ("the number {digit} is at the {position}", "the digit at the {position} is the number {digit}"),
}

# beginning of a list of specs, and each of them
STATEMENTS = (
    ("", "a {colour} {digit} is at the {position}"),
    ("there is ", "a {colour} {digit} at the {position}"),
    ("", "the {position} shows a {colour} {digit}"),
)


def state(specs: Sequence[DigitSpec], wording: tuple[str, str]) -> str:
    """A sentence that says all of the specs, in one of the `STATEMENTS`."""
    start, each = wording
    return start + " and ".join(spec.fill(each) for spec in specs)


def claim(context: RowContext, label: str, known: Sequence[DigitSpec], unknown: Sequence[str]) -> str:
    """A sentence about one position, equally worded whatever its label.

    Args:
        context: what to draw from.
        label: "entailment" - a known spec is claimed; "contradiction" - with another color or digit;
            "neutral" - at an unknown position.
        known: specs that can be told for sure.
        unknown: positions of which nothing can be told.
    """
    said = context.choose(list(CLAIMS))
    spec = context.choose(known)
    if label == "contradiction":
        spec = context.alter(spec, context.choose(said))
    if label == "neutral":
        spec = spec._replace(position=context.choose(unknown))
    return spec.fill(context.choose(CLAIMS[said]))
