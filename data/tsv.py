"""TSV files of any size: rows by number."""

import os
from collections.abc import Sequence

from data.row_index import IndexedFile, Row, Rows
from utils.errors import BadRowError, UserError, quoted

LOOKED_AT = 3  # rows that tell what a file is


class TsvFile(IndexedFile):
    """Rows of a tab-separated UTF-8 file without header and quoting; lines end in LF or CR-LF.

    Safe in data loader workers, forked or spawned: reads have no shared position, and pickling reopens.

    Args:
        path: the file. Blank lines at its end are not rows.
        columns: numbers from 0 in the order wanted, as "0,4,2" or a sequence; None takes all columns.
    Raises:
        UserError: missing or empty file, malformed `columns`, nowhere to write the index.
    """

    def __init__(self, path: str | os.PathLike[str], columns: str | Sequence[int] | None = None) -> None:
        self.columns = None if columns is None else _parse_columns(columns)
        super().__init__(path)
        self._width = self._read(0).count(b"\t") + 1 if self.columns is None else max(self.columns) + 1

    def __getitem__(self, row: int) -> Row:
        """Selected columns of row `row` (line `row` + 1); negative numbers count from the end.

        Raises:
            BadRowError: wrong number of columns, or text that is not UTF-8.
            IndexError: no such row.
        """
        number = self.number(row)
        line = self._read(number)
        fields = line.split(b"\t") if line else []
        count, width = len(fields), self._width
        if count < width or (self.columns is None and count > width):
            rule = f"the first row {width}" if self.columns is None else f"the selected ones need {width}"
            raise BadRowError(self.path, self.place(number), f"the row has {count} columns, {rule}")
        texts = []
        for column in range(width) if self.columns is None else self.columns:
            try:
                texts.append(fields[column].decode("utf-8"))
            except UnicodeDecodeError as error:
                reason = f"column {column} is not UTF-8 at its byte {error.start}"
                raise BadRowError(self.path, self.place(number), reason) from None
        return tuple(texts)

    def other_format(self) -> str | None:
        """What the file seems to be instead: no tab is in its first rows, and they look like another format."""
        lines = [self._read(row) for row in range(min(len(self), LOOKED_AT))]
        if lines[0].startswith((b"\xff\xfe", b"\xfe\xff")):
            return "UTF-16 text, not UTF-8"
        if any(b"\t" in line for line in lines):
            return None
        if lines[0].lstrip()[:1] in (b"{", b"["):
            return "JSON"
        marks = [mark for mark in (b",", b";", b"|") if all(line.count(mark) for line in lines)]
        return f"CSV with {marks[0].decode()!r} between the columns" if marks else None


def plain_number(text: str) -> str:
    """The text of numbers; ValueError for what only Python takes in them: underscores and digits of other scripts."""
    if "_" in text or not text.isascii():
        raise ValueError(f"{quoted(text)} is not a plain number")
    return text


def check_format(rows: Rows, columns: int) -> None:
    """Raises UserError if a file that must have several columns is no TSV file at all."""
    if columns > 1 and (found := rows.other_format()):
        ending = {"JSON": ".jsonl", "CSV": ".csv"}.get(found.split()[0])
        advice = f", or let the file's name end in {ending} if it is" if ending else ""
        raise UserError(
            f"{rows.path} seems to be {found}: write one row per line with a tab between the columns, without a "
            f"header{advice}."
        )


def _parse_columns(columns: str | Sequence[int]) -> tuple[int, ...]:
    parts = columns.split(",") if isinstance(columns, str) else columns
    try:
        numbers = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise UserError(f"The columns {columns!r} are not numbers from 0 with commas; write them like 0,4,2.")
    return numbers
