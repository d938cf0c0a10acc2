"""The file that `predict.py --output` writes: one JSON record per line; the same command resumes it.

`NAME.run` beside the file NAME says what decides about its records, so that a run with others is refused.
"""

import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from utils.errors import UserError, one_sentence, quoted
from utils.files import atomic_write, nearest_existing, parse_json, read_text

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
        run: what decides about records, by flag: a value, or [path, size, time] of a file, of which the path may
            differ. Of the list "input" only what the file's records are of must be the same.
    Attributes:
        ids: (id, "row" or None) of the records that are there.
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
        self.path, self.ids, self.run = path, set[tuple[Any, int | None]](), run
        self._run_path = path.with_name(f"{path.name}.run")
        self._file: FileIO | None = None
        self._size = self._whole = 0
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
        for number, line in enumerate(data[: self._whole].split(b"\n")[:-1], 1):
            self.ids.add(_id_of(line, field, f"{path}, line {number}"))
        if not _begins_record(data[self._whole :], field):
            raise UserError(f"{path} does not end in a record of '{field}': name another file.")
        if self.ids and run is not None and self._run_path.exists():
            self._check_run(run)

    def _check_run(self, run: Mapping[str, Any]) -> None:
        """UserError if the records are of another run."""
        try:
            there = parse_json(read_text(self._run_path))
            changed = [name for name in run if name in there and not _agree(there[name], run[name])]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{self._run_path} cannot be read ({one_sentence(error)}): remove it.") from error
        if changed:
            name = changed[0]
            raise UserError(
                f"{self.path} holds records of another run, with {_shown(name, there[name])} and not "
                f"{_shown(name, run[name])}: name another file, or remove {self._run_path.name} beside it to keep them."
            )

    def __enter__(self) -> "RecordFile":
        return self

    def write(self, lines: bytes) -> None:
        """Appends whole lines and hands them to the system; OSError if the disk is full."""
        append(self._open(), lines, self.path)

    def _open(self) -> FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)
            status = os.fstat(self._file.fileno())
            if stat.S_ISREG(status.st_mode):
                if status.st_size != self._size:
                    raise UserError(f"{self.path} was changed by another program in the meantime: start again.")
                if self._whole < self._size:
                    self._file.truncate(self._whole)
                if self.run is not None:
                    with atomic_write(self._run_path) as file:
                        file.write(json.dumps(self.run, indent=1).encode() + b"\n")
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


def _agree(there: Any, now: Any) -> bool:
    """Whether a run with the value `now` of a flag may add to the records of one with the other."""
    if isinstance(there, list) and isinstance(now, list):
        return now[1:] == there[1:] if _is_file(there) and _is_file(now) else now[: len(there)] == there
    return bool(there == now)


def _is_file(value: list[Any]) -> bool:
    return len(value) == 3 and not isinstance(value[1], str)


def _shown(name: str, value: Any) -> str:
    """A flag and its value, in a message."""
    flag = "the command" if name == "command" else name if name == "input" else f"--{name.replace('_', '-')}"
    if value is None:
        return f"no {flag}"
    return f"{flag} {quoted(value[0] if isinstance(value, list) and _is_file(value) else value)}"


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
