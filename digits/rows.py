"""What the files of all tasks have in common: a row depends on seed, file and number, and on no other row."""

import pickle
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from digits.handwriting import DigitSamples, load_digit_samples
from digits.scene import Scene, SceneObject, close_up, encode_scene, random_scene
from digits.words import VALUES, DigitSpec, named_alone

T = TypeVar("T")
Row = tuple[str | Scene, ...]

IDS_PER_FILE = 100_000
_VOCABULARY_ROWS = 300  # every word of the templates is in them
_HELD_OUT = {0: "val", 1: "test"}  # tenths of all texts by checksum; training has the rest


@dataclass(frozen=True)
class RowContext:
    """What one row is made from.

    Attributes:
        split: whose handwriting it shows: "train", "val" or "test".
        number: which row of its file it is, from 0.
        id: number that no other row of the task has, in files of up to `IDS_PER_FILE` rows.
        size: side of the image in pixels.
        rng: random numbers of its own.
        varied: whether the handwriting differs from drawing to drawing.
    """

    split: str
    number: int
    id: int
    size: int
    rng: np.random.Generator
    varied: bool = False

    @property
    def samples(self) -> DigitSamples:
        """The handwriting of its split."""
        return load_digit_samples(self.split, self.varied)

    def choose(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[int(self.rng.integers(len(items)))]

    def alter(self, spec: DigitSpec, attribute: str) -> DigitSpec:
        """The spec with another color, digit or position."""
        others = [value for value in VALUES[attribute] if value != getattr(spec, attribute)]
        return spec._replace(**{attribute: self.choose(others)})

    def specs(self, count: int) -> list[DigitSpec]:
        """`count` specs (1 to 9) of different digits at different positions."""
        columns = (self.rng.permutation(VALUES[name])[:count].tolist() for name in ("digit", "position"))
        digits, positions = columns
        return [DigitSpec(self.choose(VALUES["colour"]), *pair) for pair in zip(digits, positions, strict=True)]

    def scene(self, count: int) -> Scene:
        """A scene of `count` digits."""
        return random_scene(self.samples, self.rng, self.size, count)

    def scene_of_names(self, count: int) -> Scene:
        """A scene of `count` digits of which no two have the same color and digit."""
        while True:
            scene = self.scene(count)
            if len({spec.name for spec in scene.specs}) == count:
                return scene

    def close_up(self, digit: int) -> Scene:
        """A scene that a given digit nearly fills."""
        return close_up(self.samples, self.rng, self.size, digit)

    def scene_with_referent(self, count: int, template: str) -> tuple[Scene, SceneObject]:
        """A scene of `count` digits and one of them that the filled template tells from the others."""
        while True:
            scene = self.scene(count)
            alone = named_alone(template, scene.specs)
            fitting = [item for item in scene.objects if item.spec in alone]
            if fitting:
                return scene, self.choose(fitting)


@dataclass(frozen=True)
class DemoTask:
    """The files of one task.

    Attributes:
        folder: where they go below the output folder.
        files: split and name of each; a row takes its random numbers from (seed, index of the file, row number).
        make_row: its columns; a scene stands for its image.
        text_columns: columns of words.
        chance: score of guessing: the task's metric as a fraction.
        words: answers and label words, which the vocabulary must know too.
        candidates: name and answers of the pickled dict answer -> label, if there is one.
        hold_out: whether texts of validation and test never occur in training.
        varied: whether the handwriting to train on differs from drawing to drawing.
    """

    folder: str
    files: tuple[tuple[str, str], ...]
    make_row: Callable[[RowContext], Row]
    text_columns: tuple[int, ...]
    chance: float
    words: tuple[str, ...] = ()
    candidates: tuple[str, tuple[str, ...]] | None = None
    hold_out: bool = False
    varied: bool = False

    @property
    def salt(self) -> tuple[int, ...]:
        """Keeps tasks from drawing the same scenes."""
        return (zlib.crc32(f"{self.folder}/{self.files[0][1]}".encode()),)

    def row(self, file: int, number: int, seed: int, size: int) -> Row:
        """Row `number` of the file of that index."""
        split = self.files[file][0]
        rng = np.random.default_rng([seed, file, number, *self.salt])
        context = RowContext(
            split, number, IDS_PER_FILE * (file + 1) + number, size, rng, self.varied and split == "train"
        )
        row = self.make_row(context)
        while self.hold_out and _split_of(self.row_texts(row)) != split:
            row = self.make_row(context)
        return row

    def row_texts(self, row: Row) -> list[str]:
        """The columns of words."""
        return [str(row[column]) for column in self.text_columns]

    def write(self, folder: Path, counts: dict[str, int], seed: int, size: int) -> None:
        """Write all files.

        Args:
            folder: where to; made if missing.
            counts: rows of each split.
            seed: the same seed gives the same bytes.
            size: side of the images in pixels.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for file, (split, name) in enumerate(self.files):
            write_rows(folder / name, (self.row(file, number, seed, size) for number in range(counts[split])))
        if self.candidates:
            name, answers = self.candidates
            (folder / name).write_bytes(pickle.dumps({answer: label for label, answer in enumerate(answers)}))

    def texts(self) -> list[str]:
        """Texts that hold every word the task's rows can hold; always the same."""
        rows = (self.row(0, number, seed=0, size=48) for number in range(_VOCABULARY_ROWS))
        return [*self.words, *(text for row in rows for text in self.row_texts(row))]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a TSV file; scenes become images."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            columns = (encode_scene(column) if isinstance(column, Scene) else column for column in row)
            file.write("\t".join(columns) + "\n")


def _split_of(texts: list[str]) -> str:
    """The only split a combination of texts may be in."""
    return _HELD_OUT.get(zlib.crc32("\t".join(texts).encode()) % 10, "train")
