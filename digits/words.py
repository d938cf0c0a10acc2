"""Tables of what a digit scene can hold, and the specs they make."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Far apart in hue or lightness, all bright, so that each stands out from the dark canvas.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 45, 40),
    "green": (45, 190, 70),
    "blue": (65, 115, 255),
    "yellow": (250, 220, 50),
    "purple": (195, 75, 225),
    "white": (245, 245, 245),
}


class Cell(NamedTuple):
    """Place in the 3 x 3 grid of a canvas, counted from the top left."""

    column: int
    row: int


GRID = 3
POSITIONS: dict[str, Cell] = {
    "top left": Cell(0, 0),
    "top": Cell(1, 0),
    "top right": Cell(2, 0),
    "left": Cell(0, 1),
    "center": Cell(1, 1),
    "right": Cell(2, 1),
    "bottom left": Cell(0, 2),
    "bottom": Cell(1, 2),
    "bottom right": Cell(2, 2),
}


class DigitSpec(NamedTuple):
    """What there is to say about one digit of a scene; each is a word of the tables above."""

    colour: str
    digit: str
    position: str

    def fill(self, template: str) -> str:
        """The template with {colour}, {digit} and {position} filled in."""
        return template.format(**self._asdict())

    @property
    def name(self) -> str:
        """Name without article: "red seven"."""
        return f"{self.colour} {self.digit}"

    @property
    def phrase(self) -> str:
        """What is where: "a red seven at the top left"."""
        return f"a {self.name} at the {self.position}"


def relation(first: DigitSpec, second: DigitSpec) -> str:
    """Where the first of two specs in different cells is, seen from the second: rows count before columns."""
    (column, row), (other_column, other_row) = POSITIONS[first.position], POSITIONS[second.position]
    if row != other_row:
        return "above" if row < other_row else "below"
    return "left of" if column < other_column else "right of"


OPPOSITES = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
VALUES: dict[str, tuple[str, ...]] = {"colour": tuple(COLOURS), "digit": DIGITS, "position": tuple(POSITIONS)}


def named_alone(template: str, specs: Iterable[DigitSpec]) -> list[DigitSpec]:
    """The specs that the filled template tells from all the others."""
    specs = list(specs)
    count = Counter(spec.fill(template) for spec in specs)
    return [spec for spec in specs if count[spec.fill(template)] == 1]
