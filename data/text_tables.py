"""Tables that are text files, read where they are: CSV with a header, JSON lines, TSV with paths of images."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.named_rows import Table, field_of, image_of, names_of
from data.row_index import IndexedFile, Row
from data.tsv import LOOKED_AT, TsvFile
from utils.errors import BadRowError, UserError
from utils.files import decode_text, json_object

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
            if self._read(0).startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{self.path} seems to be UTF-16 text, not UTF-8: save it as UTF-8.")
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


class JsonLines(Table, IndexedFile):
    """JSON objects, one a line; a key that a row lacks is null."""

    def _read_header(self) -> list[str]:
        """Keys of the first rows."""
        keys: dict[str, None] = {}
        for row in range(min(len(self), LOOKED_AT)):
            try:
                keys |= dict.fromkeys(names_of(json_object(self._read(row))))
            except UserError:
                raise
            except ValueError as error:
                if row == 0:
                    raise UserError(f"{self.path}, line 1: {error}: write one JSON object per line.") from error
        return list(keys)

    def record(self, row: int) -> Mapping[str, Any]:
        """Values by key, and `a.b` of an object in an object."""
        values = json_object(self._read(row))
        return {**values, **{column: field_of(values, column) for column in self.source.values()}}


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


def _decoded(line: bytes) -> str:
    try:
        return decode_text(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"the row is not UTF-8 at its byte {error.start}: save the file as UTF-8") from None
