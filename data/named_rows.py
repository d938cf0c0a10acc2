"""Rows whose columns have names, whatever holds them: values become what TSV files hold, images their content."""

import errno
import math
import os
import re
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.images import PATH
from data.row_index import NumberedRows, Row
from data.vqa_gen import CONFIDENCE_MARK, join_answers
from utils.constants import SEPARATOR
from utils.errors import BadRowError, UserError, quoted, shortened
from utils.files import read_file

LONGEST_PATH = 1024  # characters
URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # with one slash too: `Path` drops the second
SHOWN = 20  # columns that a message lists
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)  # base64 is often too long for a name


class Table(NumberedRows):
    """Rows with named columns, in the order and the form that a task reads.

    Numbers become text, lists of numbers `1,2,3`, lists of texts `a&&b`, and answers with confidences, which are an
    object, `0.6|!+yes&&0.3|!+no`. Images become the content of their files.

    Args:
        path: the file or folder. names: what the task reads, in its order.
        columns: the task's name -> the file's, where they differ.
        optional: names without which a row is whole; their texts are empty, an id the row's number.
        image_root: folder that paths of images start from; None = the one of the file, or the folder itself.
    Attributes:
        header: names of the file's columns.
        plain_ids: whether ids that are whole numbers are integers, and missing ones None.
    Raises:
        UserError: a file that cannot be read or has no rows, or a column that is not there.
    """

    plain_ids = False

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
        folder = self.path if os.path.isdir(self.path) else os.path.dirname(self.path)
        self.image_root = Path(folder if image_root is None else image_root)
        self.source = {name: (columns or {}).get(name, name) for name in names}
        self.header = there = self._read_header()
        for name, column in self.source.items():
            if column not in there and (name not in self.optional or name in (columns or {})):
                shown = ", ".join(map(repr, there[:SHOWN])) + (" ..." if len(there) > SHOWN else "")
                if self.path.lower().endswith(".tar"):
                    shown += " (the files of a sample must follow each other in the tar)"
                has = "seems to be JSON, a table that has" if self.path.lower().endswith(".json") else "has"
                raise UserError(
                    f"{self.path} {has} no column {column!r}: name the one of the task's {name!r} with "
                    f"--columns={name}=NAME (the same for all files of a run), its columns are {shown}."
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
        except UserError:  # of the file, not of the row: it is not to be skipped
            raise
        except ValueError as error:
            raise BadRowError(self.path, self.place(number), str(error)) from error

    def _value(self, name: str, value: Any, row: int) -> str | bytes | int | None:
        if value is None or value != value:  # NaN, as pandas writes what is missing
            if name not in self.optional:
                raise ValueError(f"there is no {self.source[name]!r}")
            return "" if name != "id" else None if self.plain_ids else str(row)
        if name == "image":
            return image_of(value, self.image_root)
        if name == "id" and self.plain_ids and (type(value) is int or (type(value) is float and value.is_integer())):
            return int(value)  # pandas makes integers beside a missing one floats
        if name == "answers" and isinstance(value, dict | str | int | float) and CONFIDENCE_MARK not in str(value):
            # In Arrow, each row has the answers of all rows, most of them null.
            scores = value if isinstance(value, dict) else {_text(value, self.source[name], ","): 1.0}
            return join_answers({text: score for text, score in scores.items() if score is not None})
        return _text(value, self.source[name], " " if name == "codes" else ",")


def image_of(value: Any, root: Path) -> str | bytes:
    """The content of an image file whose path starts from `root`; base64 as it stands; ValueError if it is neither."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:  # as `datasets` stores images
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError(f"the image is of the type {type(value).__name__}: write a path, base64 or encoded bytes")
    if len(value) > LONGEST_PATH or value[:5].lower() == "data:" or not value.strip():
        return value
    if URL.match(value.strip()):
        raise ValueError(f"the image {quoted(value)} is a URL: download it and write the path of the file")
    path = root / value
    shown = shortened(repr(str(path)), 300)
    for place in dict.fromkeys((path, root / value.strip())):  # a space after a comma
        try:
            return read_file(place)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) not in _NO_FILE:
                reason = getattr(error, "strerror", None) or f"{error!s:.80}"
                raise ValueError(f"the image {shown} cannot be read ({reason})") from error
    if PATH.fullmatch(value.strip()):
        raise ValueError(f"there is no image {shown}: correct the path or the folder that paths start from")
    return value


def names_of(values: Mapping[str, Any]) -> Iterator[str]:
    """Columns, and behind each of several fields these: `a`, `a.b`."""
    for name, value in values.items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{field}" for field in names_of(value))


def is_in(name: str, column: str) -> bool:
    """Whether `column` is the column `name`, or one of its fields."""
    return column == name or column.startswith(f"{name}.")


def field_of(values: Any, column: str) -> Any:
    """The value of a column `a`, or of a field `a.b`; None if it is not there."""
    if not isinstance(values, dict) or column in values:
        return values.get(column) if isinstance(values, dict) else None
    return next((field_of(values[name], column[len(name) + 1 :]) for name in values if is_in(name, column)), None)


def _text(value: Any, column: str, separator: str) -> str:
    """A value as TSV files hold it; separator: of numbers."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float) and abs(value) != math.inf:
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if isinstance(value, list) and value:
        if all(isinstance(item, int | float) for item in value):
            return separator.join(map(str, value))
        if all(isinstance(item, str) for item in value):
            return SEPARATOR.join(value)
    raise ValueError(f"{column!r} is {quoted(value)}: write a text, a number, or a list of either")
