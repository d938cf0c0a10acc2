"""Rows of files whose columns have names: CSV with a header, and JSON lines. Images may be paths.

`open_rows` is the door to data files of every kind.
"""

import csv
import io
import os
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.images import PATH
from data.row_index import IndexedFile, Row
from data.tsv import LOOKED_AT, TsvFile
from data.vqa_gen import CONFIDENCE_MARK, join_answers
from utils.constants import SEPARATOR
from utils.errors import BadRowError, UserError, quoted, shortened
from utils.files import decode_text, json_object

if TYPE_CHECKING:
    from data.base import DataConfig
    from data.tasks import RowKind

LONGEST_PATH = 1024  # characters
DELIMITERS = ",;|\t"
SHOWN = 20  # columns that a message lists
csv.field_size_limit(2**31 - 1)  # images in base64


class Table(IndexedFile):
    """Rows of a file with named columns, in the order and the form that a task reads.

    Numbers become text, lists of numbers `1,2,3`, lists of texts `a&&b`, and answers with confidences, which are an
    object, `0.6|!+yes&&0.3|!+no`. Images become the content of their files.

    Args:
        path: the file. names: what the task reads, in its order.
        columns: the task's name -> the file's, where they differ.
        optional: names without which a row is whole; their texts are empty, an id the row's number.
        image_root: folder that paths of images start from; None = the one of the file.
    Attributes:
        header: names of the file's columns.
    Raises:
        UserError: a file that cannot be read or has no rows, or a column that is not there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        names: Sequence[str],
        columns: Mapping[str, str] | None = None,
        optional: Collection[str] = (),
        image_root: str | None = None,
    ) -> None:
        super().__init__(path)
        self.columns = tuple(names)
        self.optional = frozenset(optional)
        self.image_root = Path(self.path).parent if image_root is None else Path(image_root)
        self.source = {name: (columns or {}).get(name, name) for name in names}
        self.header = there = self._read_header()
        for name, column in self.source.items():
            if column not in there and (name not in self.optional or name in (columns or {})):
                shown = ", ".join(map(repr, there[:SHOWN])) + (" ..." if len(there) > SHOWN else "")
                raise UserError(
                    f"{self.path} has no column {column!r}: name the one of the task's {name!r} with "
                    f"--columns={name}=NAME, its columns are {shown}."
                )

    @abstractmethod
    def _read_header(self) -> list[str]:
        """Names of the columns."""

    @abstractmethod
    def record(self, row: int) -> Mapping[str, Any]:
        """Values of a row by column; ValueError with a reason for a bad row."""

    def other_format(self) -> str | None:
        """As of `TsvFile`: the ending has said what the file is."""
        return None

    def __getitem__(self, row: int) -> Row:
        """What the task reads of a row; negative numbers count from the end.

        Raises:
            BadRowError: a row that cannot be read, a value that is missing or of the wrong form, an image that is not
                there.
            IndexError: no such row.
        """
        number = self.number(row)
        try:
            record = self.record(number)
            return tuple(self._value(name, record.get(column), number) for name, column in self.source.items())
        except ValueError as error:
            raise BadRowError(self.path, self.line(number), str(error)) from error

    def _value(self, name: str, value: Any, row: int) -> str | bytes:
        if value is None:
            if name not in self.optional:
                raise ValueError(f"there is no {self.source[name]!r}")
            return str(row) if name == "id" else ""
        if name == "image":
            return self._image(value)
        if name == "answers" and isinstance(value, dict | str | int) and CONFIDENCE_MARK not in str(value):
            return join_answers(value if isinstance(value, dict) else {str(value): 1.0})
        return _text(value, self.source[name])

    def _image(self, value: Any) -> str | bytes:
        """The content of an image file; base64 as it stands."""
        if not isinstance(value, str):
            raise ValueError(f"the image is of the type {type(value).__name__}: write a path or base64")
        if len(value) > LONGEST_PATH or value[:5].lower() == "data:":
            return value
        if "://" in value:
            raise ValueError(f"the image {quoted(value)} is on the network: fetch it and write the path of the file")
        path = self.image_root / value
        shown = shortened(repr(str(path)), 300)
        try:
            if path.is_file():
                return path.read_bytes()
        except (OSError, ValueError) as error:
            raise ValueError(f"the image {shown} cannot be read ({error!s:.80})") from error
        if PATH.fullmatch(value):
            raise ValueError(f"there is no image {shown}: correct the path or the folder that paths start from")
        return value


class CsvTable(Table):
    """A CSV file with a header; a comma, semicolon, bar or tab between the columns, double quotes around values."""

    quoted = True

    def __len__(self) -> int:
        return self._num_lines - 1

    def line(self, row: int) -> int:
        """Number of the row's line, if no value has several."""
        return row + 2

    def _read_header(self) -> list[str]:
        """The first line, which also tells the delimiter."""
        text = decode_text(self._read(0))
        self.delimiter = max(DELIMITERS, key=text.count)
        names = [name.strip() for name in self._split(text)]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{self.path} has two columns {repeated[0]!r}: give every column a name of its own.")
        if len(self) < 1:
            raise UserError(f"{self.path} has a header and no rows; check how it was made.")
        return names

    def _split(self, text: str) -> list[str]:
        try:
            return next(csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True), [])
        except csv.Error as error:
            raise ValueError(f"the row is not CSV ({error})") from error

    def record(self, row: int) -> Mapping[str, Any]:
        """Texts by column."""
        values = self._split(decode_text(self._read(row + 1)))
        if len(values) != len(self.header):
            raise ValueError(f"the row has {len(values)} columns, the header {len(self.header)}")
        return dict(zip(self.header, values, strict=True))


class JsonLines(Table):
    """JSON objects, one a line; a key that a row lacks is null."""

    def _read_header(self) -> list[str]:
        """Keys of the first rows."""
        keys: dict[str, None] = {}
        for row in range(min(len(self), LOOKED_AT)):
            try:
                keys |= dict.fromkeys(self.record(row))
            except ValueError as error:
                if row == 0:
                    raise UserError(f"{self.path}, line 1: {error}: write one JSON object a line.") from error
        return list(keys)

    def record(self, row: int) -> Mapping[str, Any]:
        """Values by key."""
        return json_object(self._read(row))


def _text(value: Any, column: str) -> str:
    """A value as TSV files hold it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if isinstance(value, list) and value:
        if all(isinstance(item, int | float) for item in value):
            return ",".join(map(str, value))
        if all(isinstance(item, str) for item in value):
            return SEPARATOR.join(value)
    raise ValueError(f"{column!r} is {quoted(value)}: write a text, a number, or a list of either")


def column_names(columns: str | None, names: Sequence[str]) -> dict[str, str]:
    """The value of --columns, `image=file_name,text=caption`, as a dictionary; UserError for any other."""
    found: dict[str, str] = {}
    for part in columns.split(",") if columns else ():
        name, mark, column = (text.strip() for text in part.partition("="))
        if name not in names or not column:
            shown = ", ".join(names)
            raise UserError(f"--columns={columns}: {part!r} is not NAME=COLUMN, where NAME is one of {shown}.")
        found[name] = column
    return found


def open_rows(
    path: str,
    selected_cols: str | None,
    kind: "RowKind",
    config: "DataConfig",
    needs_references: bool = True,
    names: Sequence[str] = (),
) -> TsvFile | Table:
    """The rows of a data file, as its ending says: .csv and .jsonl by name, any other TSV by number.

    Args:
        selected_cols: columns of a TSV file. kind: the task, and `config` its options.
        needs_references: rows need what the task learns. names: what to read; () = all.

    Raises:
        UserError: a file that cannot be read, or a column that is not there.
    """
    ending = Path(path).suffix.lower()
    if ending not in TABLES or (ending == ".csv" and _is_tsv(path)):
        if names:
            given = selected_cols.split(",") if selected_cols else [str(n) for n in range(len(kind.names))]
            selected_cols = ",".join(column for name, column in zip(kind.names, given, strict=False) if name in names)
        return TsvFile(path, selected_cols)
    columns = column_names(config.columns, kind.names)
    optional = {"id", *(name for name, option in getattr(kind, "switched", {}).items() if not getattr(config, option))}
    left_out = kind.dataset_class.left_out
    if left_out and not needs_references:
        optional.add(kind.names[-left_out])
    return TABLES[ending](path, names or kind.names, columns, optional, config.image_root)


def _is_tsv(path: str) -> bool:
    """Whether a file named .csv is TSV as released: tabs, and no header to tell by."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            line = file.readline(1 << 20)
    except OSError:
        return False  # opening it says so
    return line.count(b"\t") > max(line.count(mark.encode()) for mark in DELIMITERS if mark != "\t")


TABLES: dict[str, type[Table]] = {".csv": CsvTable, ".jsonl": JsonLines}
