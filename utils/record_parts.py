"""Records that several processes write: each appends to parts of its own, which are merged into one file at the end."""

import json
import os
import shutil
from array import array
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.files import atomic_write, parse_json
from utils.record_file import Numbering, append, record_line

NONE, SKIPPED, ANSWERED = range(3)


class Entry(NamedTuple):
    """What became of an item.

    Attributes:
        number: its place among all items. id: its record's. nameless: whether its id could not be read.
        result: its record without the id; None = it was skipped.
    """

    number: int
    id: Any
    nameless: bool
    result: dict[str, Any] | None


class RecordParts:
    """The folder `NAME.parts` beside an output: one file per process and run, one line per item.

    Args:
        output: the file NAME that the parts become. run: what decides about the records; parts of another are refused.
        total: number of items.
    Attributes:
        there: for each item whether the parts hold nothing, a skipped item or a record.
    Raises:
        UserError: parts of a run with other inputs or options, or none of ours.
    """

    def __init__(self, output: Path, run: str, total: int) -> None:
        self.output, self.run, self.total = output, run, total
        self.folder = folder_of(output)
        self.there = bytearray(total)
        self._file: FileIO | None = None
        for path in self._files():
            for _, entry in self._entries(path):
                self._note(entry)

    def write(self, entries: Collection[Entry]) -> None:
        """Appends to this process's part, made by its first entries; OSError if the disk is full."""
        lines = b"".join(json.dumps(entry).encode("ascii") + b"\n" for entry in entries)
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            numbers = (int(path.stem) for path in self._files())
            path = self.folder / f"{max(numbers, default=0) + 1:06}.jsonl"
            while self._file is None:
                try:
                    self._file = open(path, "xb", buffering=0)
                except FileExistsError:  # another process took the name
                    path = path.with_stem(f"{int(path.stem) + 1:06}")
            lines = json.dumps({"run": self.run}).encode() + b"\n" + lines
        append(self._file, lines, Path(self._file.name))
        for entry in entries:
            self._note(entry)

    def close(self) -> None:
        """Ends this process's part."""
        if self._file is not None:
            self._file.close()

    def merge(self) -> None:
        """Makes NAME of all parts, in the order of the items: complete or not at all.

        Raises UserError if items are missing.
        """
        # Of each item the file and the place of its best line: an item that was skipped may be answered later.
        self.there = bytearray(self.total)
        files, starts, paths = array("i", [-1]) * self.total, array("q", [0]) * self.total, list(self._files())
        for index, path in enumerate(paths):
            for start, entry in self._entries(path):
                if self._note(entry):
                    files[entry.number], starts[entry.number] = index, start
        if missing := self.there.count(NONE):
            raise UserError(
                f"{self.folder}: {missing} of {self.total} items are missing, the first is item "
                f"{self.there.index(NONE)}: rerun the same command, which computes them."
            )
        numbering = Numbering()
        with ExitStack() as stack, atomic_write(self.output) as output:
            parts = [stack.enter_context(open(path, "rb")) for path in paths]
            for number in range(self.total):
                part = parts[files[number]]
                part.seek(starts[number])
                entry = _entry(part.readline())
                row, _ = numbering.place(number, entry.id, entry.nameless)
                if entry.result is not None:
                    output.write(record_line(entry.id, entry.result, row))
        shutil.rmtree(self.folder)

    def _note(self, entry: Entry) -> bool:
        """Whether this is the best that was found of an item so far."""
        if not entry.number < self.total:
            raise UserError(f"{self.folder} has more items than the inputs: remove it, or name another output.")
        state = SKIPPED if entry.result is None else ANSWERED
        better = state > self.there[entry.number]
        self.there[entry.number] = max(state, self.there[entry.number])
        return better

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.jsonl"))

    def _entries(self, path: Path) -> Iterator[tuple[int, Entry]]:
        """Where each whole line of a part begins, and what it says; UserError for a part of another run."""
        with open(path, "rb") as file:
            header = file.readline()
            if not header.endswith(b"\n"):  # stopped while it was begun
                return
            start = len(header)
            try:
                if parse_json(header.decode()) != {"run": self.run}:
                    raise UserError(
                        f"{self.folder} was left by a run with other inputs, another checkpoint or other options: "
                        "repeat its command, remove the folder, or name another output."
                    )
                for line in file:
                    if line.endswith(b"\n"):
                        yield start, _entry(line)
                    start += len(line)
            except (ValueError, TypeError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{path} is damaged: remove it, and its items are computed again.") from error


def _entry(line: bytes) -> Entry:
    """What a line of a part says; ValueError or TypeError if it is none."""
    entry = Entry(*parse_json(line.decode()))
    if not isinstance(entry.number, int) or entry.number < 0 or not isinstance(entry.result, dict | None):
        raise ValueError("it is not a line of a part")
    return entry


def folder_of(output: Path) -> Path:
    """Where the parts of an output are."""
    return output.with_name(f"{output.name}.parts")


def identity(paths: Iterable[str | os.PathLike[str]]) -> list[Any]:
    """Of each path whether and how a file there has changed: size and time of its last change."""
    found = [(os.fspath(path), os.stat(path) if os.path.exists(path) else None) for path in paths]
    return [(name, status and status.st_size, status and status.st_mtime_ns) for name, status in found]
