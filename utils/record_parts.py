"""Records that several processes write: each appends to parts of its own, which are merged into one file at the end."""

import re
from array import array
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.files import atomic_write, parse_json
from utils.part_files import PartFiles, damaged
from utils.record_file import Numbering, record_line
from utils.record_origins import Key, Origins

NONE, SKIPPED, ANSWERED = range(3)


class Entry(NamedTuple):
    """What became of an item.

    Attributes:
        number: its place among all items. id: its record's. nameless: whether its id could not be read.
        result: its record without the id; None = it was skipped. digest: of what it holds.
    """

    number: int
    id: Any
    nameless: bool
    result: dict[str, Any] | None
    digest: str = ""


class RecordParts:
    """The parts of an output: of each item one line or, after a stopped run, several.

    Args:
        output: the file that the parts become. run: what decides about the records; parts of another are refused.
        total: number of items.
    Attributes:
        there: for each item whether the parts hold nothing, a skipped item or a record.
    Raises:
        UserError: parts of a run with other inputs or options, or none of ours.
    """

    def __init__(self, output: Path, run: str, total: int) -> None:
        self.output, self.total = output, total
        self.files = PartFiles(output, run)
        self.there = bytearray(total)
        self.digests = array("Q", [0]) * total  # of answered items; 0 = not known
        for path in self.files.paths():
            for _, entry in self._entries(path):
                self._note(entry)

    def write(self, entries: Collection[Entry]) -> None:
        """Appends to this process's part; OSError if the disk is full."""
        self.files.write(entries)
        for entry in entries:
            self._note(entry)

    def check(self, number: int, digest: str, where: str) -> None:
        """UserError if the record of an item was made of another one."""
        known = self.digests[number] if self.there[number] == ANSWERED else 0
        if known and known != int(digest, 16):
            raise UserError(
                f"{self.files.folder} holds a record of another image or text than {where}: the inputs have changed; "
                "remove the folder, or name another output."
            )

    def close(self) -> None:
        """Ends this process's part."""
        self.files.close()

    def merge(self, origins: Origins | None = None) -> None:
        """Makes the output of all parts, in the order of the items, and its origins: complete or not at all.

        Raises UserError if items are missing.
        """
        # Of each item the file and the place of its best line: an item that was skipped may be answered later.
        self.there = bytearray(self.total)
        files, starts, paths = array("i", [-1]) * self.total, array("q", [0]) * self.total, self.files.paths()
        for index, path in enumerate(paths):
            for start, entry in self._entries(path):
                if self._note(entry):
                    files[entry.number], starts[entry.number] = index, start
        if missing := self.there.count(NONE):
            raise UserError(
                f"{self.files.folder}: {missing} of {self.total} items are missing, the first is item "
                f"{self.there.index(NONE)}: rerun the same command, which computes them."
            )
        numbering, digests = Numbering(), dict[Key, str]()
        if origins is not None:
            origins.path.unlink(missing_ok=True)  # it is of other lines than those to come
        with ExitStack() as stack, atomic_write(self.output) as output:
            parts = [stack.enter_context(open(path, "rb")) for path in paths]
            for number in range(self.total):
                part = parts[files[number]]
                part.seek(starts[number])
                entry = Entry(*parse_json(part.readline().decode()))
                row, _ = numbering.place(number, entry.id, entry.nameless)
                if entry.result is not None:
                    output.write(record_line(entry.id, entry.result, row))
                    digests[entry.id, row] = entry.digest
        if origins is not None:
            origins.begin(digests)
        self.files.remove()

    def _note(self, entry: Entry) -> bool:
        """Whether this is the best that was found of an item so far."""
        if not entry.number < self.total:
            raise UserError(f"{self.files.folder} has more items than the inputs: remove it, or name another output.")
        state = SKIPPED if entry.result is None else ANSWERED
        better = state > self.there[entry.number]
        if better and state == ANSWERED:
            self.digests[entry.number] = int(entry.digest or "0", 16)
        self.there[entry.number] = max(state, self.there[entry.number])
        return better

    def _entries(self, path: Path) -> Iterator[tuple[int, Entry]]:
        """Where each entry of a part begins; UserError for a part of another run."""
        for start, value in self.files.lines(path):
            if not _is_entry(value):
                raise damaged(path)
            yield start, Entry(*value)


def _is_entry(value: Any) -> bool:
    """Whether a line's value is what `RecordParts` writes."""
    if not isinstance(value, list) or len(value) != len(Entry._fields):
        return False
    number, _, _, result, digest = value
    known = isinstance(digest, str) and re.fullmatch("[0-9a-f]{0,16}", digest) is not None
    return isinstance(number, int) and number >= 0 and isinstance(result, dict | None) and known
