"""Rows whose columns have names: of CSV files with a header, of JSON lines and, by `data.arrow_rows`, of other tables.

Images may be paths. `open_rows` is the door to data files of every kind.
"""

import csv
import hashlib
import io
import json
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.arrow_rows import ArrowTable
from data.named_rows import URL, Table, field_of, image_of, names_of
from data.row_index import ChangedFileError, IndexedFile, Row, Stamp, cache_folder, stamp_of
from data.table_files import ENDINGS, FOLDER, column_names, image_files, source_files
from data.tsv import LOOKED_AT, TsvFile
from utils.errors import BadRowError, UserError, one_sentence, quoted, shortened
from utils.files import BYTE_ORDER_MARK, atomic_write, decode_text, json_object, read_file

if TYPE_CHECKING:
    from data.base import DataConfig
    from data.tasks import RowKind

logger = logging.getLogger(__name__)
DELIMITERS = ",;|\t"
_SPACE = re.compile(r"[ \t\r\n]*")
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


class JsonArray(Table):
    """A JSON file with an array of objects, which become JSON lines in the cache folder once and are read there."""

    def _read_header(self) -> list[str]:
        self._stamp = stamp_of(self.path) if os.path.isfile(self.path) else None
        self._lines = JsonLines(_lines_of_array(self.path, self._stamp), (), self.source)
        self._lines.source = self.source
        return self._lines.header

    def __len__(self) -> int:
        return len(self._lines)

    def place(self, row: int) -> str:
        """What messages call the row."""
        return f"row {row + 1}"

    def record(self, row: int) -> Mapping[str, Any]:
        """Values by key; ChangedFileError if the file is not what it was."""
        if self._stamp is None or not stamp_of(self.path).same_content(self._stamp):
            raise ChangedFileError(self.path)
        return self._lines.record(row)


class MetadataFolder(Table):
    """A folder of images with files `metadata.csv` or `metadata.jsonl`: their rows, whose `file_name` is the `image`.

    Paths start from the folder of their file; `x_file_name` becomes the column `x`.
    """

    def _read_header(self) -> list[str]:
        """Columns of all files; says how many images they do not name."""
        files = source_files(self.path)[1]
        self._tables = [(CsvTable if file.endswith(".csv") else JsonLines)(file, ()) for file in files]
        for table in self._tables:
            table.source = self.source
            if not any(_FILE_NAME.fullmatch(name) for name in table.header):
                raise UserError(f"{table.path} has no column 'file_name': name the images in one, as imagefolder does.")
        self._starts = [0, *accumulate(map(len, self._tables))]
        images = len(image_files(Path(self.path), recursive=True)[0])
        if images > len(self):
            logger.warning(
                "%s has %d images and metadata for %d: the others are left out.", self.path, images, len(self)
            )
        return [
            _FILE_NAME.sub(_image_column, name) for name in dict.fromkeys(sum((t.header for t in self._tables), []))
        ]

    def __len__(self) -> int:
        return self._starts[-1]

    def _find(self, row: int) -> "tuple[CsvTable | JsonLines, int]":
        part = bisect_right(self._starts, row) - 1
        return self._tables[part], row - self._starts[part]

    def place(self, row: int) -> str:
        """What messages call the row: file and line and, if it can be read, the name of the image."""
        table, number = self._find(row)
        try:
            image = f" ({shortened(str(table.record(number).get('file_name')), 300)})"
        except ValueError:
            image = ""
        return f"{os.path.relpath(table.path, self.path)}, {table.place(number)}{image}"

    def record(self, row: int) -> Mapping[str, Any]:
        """Values by column."""
        table, number = self._find(row)
        folder, values = os.path.dirname(table.path), dict(table.record(number))
        for name in [name for name in values if _FILE_NAME.fullmatch(name)]:
            value = values.pop(name)
            if value is not None:
                value = os.path.join(folder, value) if isinstance(value, str) and value.strip() else ""
            values[_FILE_NAME.sub(_image_column, name)] = value
        return values


_FILE_NAME = re.compile(r"(?:(.+)_)?file_name")


def _image_column(name: re.Match[str]) -> str:
    return name[1] or "image"


def _lines_of_array(path: str, stamp: Stamp | None) -> Path:
    """The objects of a JSON array, one a line, in a file of the cache folder; UserError if it is no such array."""
    key = hashlib.sha256(repr((os.path.abspath(path), stamp)).encode("utf-8", "surrogatepass")).hexdigest()
    place = cache_folder() / "json" / f"{key[:32]}.jsonl"
    if place.exists() and stamp is not None:
        return place
    try:
        text = decode_text(read_file(Path(path)))
    except OSError as error:
        raise UserError(f"There is no data file {path} ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error
    lines, at, decoder = [], _SPACE.match(text).end() + 1, json.JSONDecoder()  # type: ignore[union-attr]
    try:
        while (at := _SPACE.match(text, at).end()) < len(text) and text[at] != "]":  # type: ignore[union-attr]
            start, (_, at) = at, decoder.raw_decode(text, at)
            lines.append(text[start:at].replace("\n", " ").replace("\r", " "))  # which are no part of a value
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
            at += text[at : at + 1] == ","
        if at == len(text) or _SPACE.fullmatch(text, at + 1) is None:
            raise ValueError(
                f"it does not end with the bracket at character {at + 1}" if text[at:] else "its end is missing"
            )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON array ({error!s:.200}): check how it was made.") from error
    if not lines:
        raise UserError(f"{path} has no rows; check how it was made.")
    if lines[0][0] != "{":
        raise UserError(f"{path} is an array of {quoted(lines[0])} and so on, not of objects: check how it was made.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as file:
            file.writelines(f"{line}\n".encode("utf-8", "surrogatepass") for line in lines)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({one_sentence(error).rstrip('.')}): set OFA_CACHE to a folder."
        ) from error
    return place


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
        return None if _is_tsv(_start(path).partition(b"\n")[0], names) else CsvTable
    if ending in (".jsonl", ".json"):
        is_array = ending == ".json" and _start(path).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")
        return JsonArray if is_array else JsonLines
    if os.path.isdir(path):
        reader, files = source_files(path)
        return MetadataFolder if reader == FOLDER and files and _are_texts(files) else ArrowTable
    return ArrowTable if ending in ENDINGS else None


def _are_texts(files: Sequence[str]) -> bool:
    return all(file.endswith((".csv", ".jsonl")) for file in files)


def _start(path: str) -> bytes:
    """The first mebibyte of a file."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(1 << 20)
    except OSError:
        return b""  # opening it says so


def _is_tsv(line: bytes, names: Collection[str]) -> bool:
    """Whether a file named .csv is TSV as released: tabs in its first line, and no header with one of these names."""
    tabs = line.count(b"\t") > max(line.count(mark.encode()) for mark in DELIMITERS if mark != "\t")
    header = {part.strip(b'" \r\n') for part in line.removeprefix(BYTE_ORDER_MARK).split(b"\t")}
    return tabs and header.isdisjoint(name.encode() for name in names)
