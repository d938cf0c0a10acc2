"""Rows whose columns have names: of CSV files with a header, of JSON lines and, by `data.arrow_rows`, of other tables.

Images may be paths. `open_rows` is the door to data files of every kind.
"""

import csv
import io
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.arrow_rows import ArrowTable
from data.named_rows import URL, Table, image_of
from data.row_index import IndexedFile, Row
from data.table_files import ENDINGS, column_names
from data.tsv import LOOKED_AT, TsvFile
from utils.errors import BadRowError, UserError
from utils.files import BYTE_ORDER_MARK, decode_text, json_object

if TYPE_CHECKING:
    from data.base import DataConfig
    from data.tasks import RowKind

DELIMITERS = ",;|\t"
csv.field_size_limit(2**31 - 1)  # images in base64


class CsvTable(Table, IndexedFile):
    """A CSV file with a header; a comma, semicolon, bar or tab between the columns, double quotes around values."""

    quoted = True

    def __len__(self) -> int:
        return self._num_lines - 1

    def line(self, row: int) -> int:
        """Number of the row's first line: values may have several."""
        return self._line_ends_before(row + 1) + 1

    def sizes(self) -> np.ndarray | None:
        """As of other files, without the header."""
        sizes = super().sizes()
        return None if sizes is None else sizes[1:]

    def _read_header(self) -> list[str]:
        """The first line, which also tells the delimiter."""
        try:
            text = _decoded(self._read(0))
            if "\r" in text.partition('"')[0]:
                raise UserError(
                    f"{self.path} has lines that end in CR alone, as on old Macs: save it with LF or CR-LF."
                )
            self.delimiter = max(DELIMITERS, key=text.count)
            names = [name.strip() for name in self._split(text)]
            if not any(names):
                raise ValueError("the line is empty")
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{self.path}, line 1: {error}; write the names of the columns there.") from error
        if repeated := [name for name in names if name and names.count(name) > 1]:  # spreadsheets leave empty ones
            raise UserError(f"{self.path} has two columns {repeated[0]!r}: give every column a unique name.")
        if len(self) < 1:
            raise UserError(f"{self.path} has a header and no rows; check how it was made.")
        return names

    def _split(self, text: str) -> list[str]:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True)
        try:
            values, more = next(rows, []), next(rows, None)
        except csv.Error as error:
            raise ValueError(f"the row is not CSV ({error})") from error
        if more is not None:  # the index takes what lies between two quotes for one row
            raise ValueError(
                "a double quote inside an unquoted value would hide the next rows: "
                'write the value as "...", with each quote inside doubled'
            )
        return values

    def record(self, row: int) -> Mapping[str, Any]:
        """Texts by column."""
        values = self._split(_decoded(self._read(row + 1)))
        if len(values) != len(self.header):
            raise ValueError(f"the row has {len(values)} columns, the header {len(self.header)}")
        return dict(zip(self.header, values, strict=True))


class PathTsv(TsvFile):
    """A TSV file in one of whose columns images may be paths.

    Args:
        path, columns: as of `TsvFile`. image: which of the selected columns. root: where paths start from.
    """

    def __init__(self, path: str, columns: str | None, image: int, root: str) -> None:
        super().__init__(path, columns)
        self._image, self._root = image, Path(root)

    def __getitem__(self, row: int) -> Row:
        """As of `TsvFile`, with the content of an image file in place of its path."""
        values = list(super().__getitem__(row))
        try:
            values[self._image : self._image + 1] = [image_of(v, self._root) for v in values[self._image :][:1]]
        except ValueError as error:
            raise BadRowError(self.path, self.place(self.number(row)), str(error)) from error
        return tuple(values)


class JsonLines(Table, IndexedFile):
    """JSON objects, one a line; a key that a row lacks is null."""

    def _read_header(self) -> list[str]:
        """Keys of the first rows."""
        keys: dict[str, None] = {}
        for row in range(min(len(self), LOOKED_AT)):
            try:
                keys |= dict.fromkeys(self.record(row))
            except UserError:
                raise
            except ValueError as error:
                if row == 0:
                    raise UserError(f"{self.path}, line 1: {error}: write one JSON object per line.") from error
        return list(keys)

    def record(self, row: int) -> Mapping[str, Any]:
        """Values by key."""
        return json_object(self._read(row))


def _decoded(line: bytes) -> str:
    try:
        return decode_text(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"the row is not UTF-8 at its byte {error.start}: save the file as UTF-8") from None


def open_rows(
    path: str,
    selected_cols: str | None,
    kind: "RowKind",
    config: "DataConfig",
    needs_references: bool = True,
    names: Sequence[str] = (),
) -> TsvFile | Table:
    """The rows of a data file: by name of a folder and where the ending says so, of any other, which is TSV, by number.

    Args:
        selected_cols: columns of a TSV file. kind: the task, and `config` its options.
        needs_references: rows need what the task learns. names: what to read; () = all.

    Raises:
        UserError: a file that cannot be read, or a column that is not there.
    """
    columns = column_names(config.columns, kind.names)
    table = table_class(path, {*kind.names, *columns.values()})
    if table is None:
        if columns and not selected_cols:
            raise UserError(f"{path} is a TSV file, whose columns have numbers: pass --selected-cols, not --columns.")
        if names:
            given = selected_cols.split(",") if selected_cols else [str(n) for n in range(len(kind.names))]
            selected_cols = ",".join(column for name, column in zip(kind.names, given, strict=False) if name in names)
        read = [name for name in kind.names if not names or name in names]
        if config.image_root is not None and "image" in read:
            return PathTsv(path, selected_cols, read.index("image"), config.image_root)
        return TsvFile(path, selected_cols)
    optional = {"id", *getattr(kind, "optional", ())}
    optional |= {name for name, option in getattr(kind, "switched", {}).items() if not getattr(config, option)}
    left_out = kind.dataset_class.left_out
    if left_out and not needs_references:
        optional.add(kind.names[-left_out])
    return table(path, names or kind.names, columns, optional, config.image_root)


def table_class(path: str, names: Collection[str] = ()) -> type[Table] | None:
    """What reads the file or folder by column names; None = TSV. names: what columns are called.

    Raises:
        UserError: a URL.
    """
    if URL.match(path):
        raise UserError(
            f"{path} is a URL, and data are not fetched: download the file (wget, or `hf download` from the "
            "Hugging Face Hub) and pass its path."
        )
    ending = Path(path).suffix.lower()
    if ending == ".csv":
        return None if _is_tsv(_first_line(path), names) else CsvTable
    if ending == ".jsonl" or (ending == ".json" and not _first_line(path).lstrip().startswith(b"[")):
        return JsonLines
    return ArrowTable if os.path.isdir(path) or ending in ENDINGS else None


def _first_line(path: str) -> bytes:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.readline(1 << 20)
    except OSError:
        return b""  # opening it says so


def _is_tsv(line: bytes, names: Collection[str]) -> bool:
    """Whether a file named .csv is TSV as released: tabs in its first line, and no header with one of these names."""
    tabs = line.count(b"\t") > max(line.count(mark.encode()) for mark in DELIMITERS if mark != "\t")
    header = {part.strip(b'" \r\n') for part in line.removeprefix(BYTE_ORDER_MARK).split(b"\t")}
    return tabs and header.isdisjoint(name.encode() for name in names)
