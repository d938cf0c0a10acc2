"""The file that `predict.py --output` writes: one JSON record per line; the same command resumes it."""

import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from utils.errors import UserError
from utils.files import nearest_existing
from utils.record_origins import Key, Origins

START = b'{"id": '
_ID = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+')
_HALF_ID = re.compile(rb'"(?:[^"\\]|\\.)*\\?|-')


class RecordFile:
    """Records `{"id": ..., FIELD: ..., "score": ...}` that are there, and the place of those to come.

    Nothing on disk changes before the first `write` or the end of a run without errors. Then a last line that a
    stopped run left half written is cut off, and what follows is appended.

    Args:
        path: a regular file, a device such as /dev/null, or nothing yet. field: the key that stands behind the id.
        inputs: files that are read, which must not be written.
        run: options that decide about records; None = any.
    Attributes:
        ids: (id, "row" or None) of the records that are there -> digest of the item, '' if it is not known.
    Raises:
        UserError: what stands there is not of this command, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        field: str,
        inputs: Iterable[str | os.PathLike[str]] = (),
        run: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.ids = path, dict[Key, str]()
        self.origins = None if run is None else Origins(path, run)
        self._file: FileIO | None = None
        self._size = self._whole = 0
        self._regular = False
        if any(os.path.exists(name) and path.exists() and os.path.samefile(name, path) for name in inputs):
            raise UserError(f"{path} is an input: name another file for the output.")
        there = nearest_existing(path)
        if not os.access(there, os.W_OK) or (there != path and not there.is_dir()):
            raise UserError(f"{path} cannot be written ({there} does not allow it): name another file.")
        if there != path:
            return
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            if not stat.S_ISCHR(kind):  # opening a pipe would wait for its other end
                raise UserError(f"{path} is not a regular file: name a file, or leave --output out to print.")
            return
        data = path.read_bytes()
        self._size, self._whole = len(data), data.rfind(b"\n") + 1
        lines = data[: self._whole].split(b"\n")[:-1]
        found = [_id_of(line, field, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
        if not _begins_record(data[self._whole :], field):
            raise UserError(f"{path} does not end in a record of '{field}': name another file.")
        digests = self.origins.read() if self.origins is not None and found else {}
        self.ids = {key: digests.get(key, "") for key in found}

    def check(self, item_id: Any, number: int, digest: str, where: str) -> None:
        """UserError if the record that is there for an item was made of another one.

        Args:
            number: of the item. digest: of what it holds. where: its place.
        """
        known = self.ids.get((item_id, number), self.ids.get((item_id, None)))
        if self.origins is not None and known and known != digest:
            raise self.origins.other_item(item_id, where)

    def __enter__(self) -> "RecordFile":
        return self

    def write(self, lines: bytes, digests: Mapping[Key, str] | None = None) -> None:
        """Appends whole lines and hands them to the system; OSError if the disk is full.

        Args:
            digests: of the items that the records are of.
        """
        append(self._open(), lines, self.path)
        if self.origins is not None and self._regular and digests:
            self.origins.add(digests)

    def _open(self) -> FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)
            status = os.fstat(self._file.fileno())
            self._regular = stat.S_ISREG(status.st_mode)
            if self._regular:
                if status.st_size != self._size:
                    raise UserError(f"{self.path} was changed by another program in the meantime: start again.")
                if self._whole < self._size:
                    self._file.truncate(self._whole)
                if self.origins is not None:
                    self.origins.begin(self.ids)
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._open()  # no answer at all is an empty file
        if self._file is not None:
            self._file.close()


def append(file: FileIO, data: bytes, path: Path) -> None:
    """Writes all of the data to an unbuffered file; OSError, which names its path, if the disk is full."""
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        error.filename = str(path)
        raise


class Numbering:
    """Tells items apart by their ids, and by their numbers where ids repeat; items are passed in input order.

    Args:
        ids: those of a `RecordFile`.
    """

    def __init__(self, ids: Collection[tuple[Any, int | None]] = ()) -> None:
        self.ids = ids
        self.seen: set[Any] = set()
        self.nameless = False  # whether an item came whose id, if it has one, cannot be read

    def place(self, number: int, item_id: Any, nameless: bool = False) -> tuple[int | None, bool]:
        """The "row" of the item's record, None if its id is enough; and whether a record is there."""
        first = item_id not in self.seen
        row = None if first and not self.nameless else number
        self.seen.add(item_id)
        self.nameless |= nameless
        return row, (item_id, number) in self.ids or (first and (item_id, None) in self.ids)


def record_line(item_id: Any, result: Mapping[str, Any], row: int | None) -> bytes:
    """The line of a record."""
    return (json.dumps({"id": item_id, **result, **({} if row is None else {"row": row})}) + "\n").encode("ascii")


def _id_of(line: bytes, field: str, where: str) -> tuple[Any, int | None]:
    """The id of a record, and the row that it is of if it says so; UserError for any other line."""
    try:
        record = json.loads(line)
        scores = record.keys() & {"score", "scores"}
        if field not in record or not scores or record.keys() - scores - {"id", field, "row"}:
            raise KeyError(field)
        if not isinstance(row := record.get("row"), int | None):
            raise TypeError(row)
        hash(record["id"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{where} is not a record with 'id' and '{field}' and its score: name another file.") from error
    return record["id"], row


def _begins_record(text: bytes, field: str) -> bool:
    """Whether a line without its end is what a write that was cut short leaves of a record."""
    if not text.startswith(START):
        return START.startswith(text)
    rest = text.removeprefix(START)
    found = _ID.match(rest)
    if found is None:
        return not rest or _HALF_ID.fullmatch(rest) is not None
    behind, mark = rest[found.end() :], f', "{field}": '.encode()
    return behind.startswith(mark) or mark.startswith(behind)
