"""Tables of what a digit scene can hold, and the phrases that name it."""

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


def object_name(colour: str, digit: int) -> str:
    """Name an object without article: "red seven"."""
    return f"{colour} {DIGITS[digit]}"


def object_phrase(colour: str, digit: int, position: str) -> str:
    """Say what is where: "a red seven at the top left"."""
    return f"a {object_name(colour, digit)} at the {position}"
