"""Tables that are read as text tables are: a JSON array, and a folder of images with metadata."""

import hashlib
import json
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from data.named_rows import Table
from data.row_index import ChangedFileError, Stamp, cache_folder, locked, stamp_of
from data.table_files import image_files, source_files
from data.text_tables import CsvTable, JsonLines
from utils.errors import UserError, one_sentence, quoted, shortened
from utils.files import atomic_write, decode_text, read_file

logger = logging.getLogger(__name__)
_SPACE = re.compile(r"[ \t\r\n]*")
_FILE_NAME = re.compile(r"(?:(.+)_)?file_name")


class JsonArray(Table):
    """A JSON file with an array of objects, which become JSON lines in the cache folder once and are read there."""

    def _read_header(self) -> list[str]:
        self._stamp = stamp_of(self.path)
        lines = _lines_of_array(self.path, self._stamp)
        try:
            self._lines = JsonLines(lines, ())
        except UserError as error:
            raise UserError(str(error).replace(str(lines), self.path)) from error
        self._lines.source = self.source
        return self._lines.header

    def __len__(self) -> int:
        return len(self._lines)

    def place(self, row: int) -> str:
        """What messages call the row."""
        return f"row {row + 1}"

    def record(self, row: int) -> Mapping[str, Any]:
        """Values by key; ChangedFileError if the file is not what it was."""
        try:
            unchanged = stamp_of(self.path).same_content(self._stamp)
        except OSError:
            unchanged = False
        if not unchanged:
            raise ChangedFileError(self.path)
        return self._lines.record(row)


class MetadataFolder(Table):
    """A folder of images with files `metadata.csv` or `metadata.jsonl`: their rows, whose `file_name` is the `image`.

    Paths start from the folder of their file; `x_file_name` becomes the column `x`.
    """

    def _read_header(self) -> list[str]:
        """Columns of all files; says how many images they do not name."""
        files = source_files(self.path)[1]
        folders = [os.path.dirname(file) for file in files]
        if twice := [folder for folder in folders if folders.count(folder) > 1]:
            raise UserError(f"{twice[0]} has metadata in several files: leave one of them, as rows would come twice.")
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


def _image_column(name: re.Match[str]) -> str:
    return name[1] or "image"


def _lines_of_array(path: str, stamp: Stamp) -> Path:
    """The objects of a JSON array, one a line, in a file of the cache folder; UserError if it is no such array."""
    key = hashlib.sha256(repr((os.path.abspath(path), stamp)).encode("utf-8", "surrogatepass")).hexdigest()
    place = cache_folder() / "json" / f"{key[:32]}.jsonl"
    try:
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with locked(place.with_suffix(".lock")):  # all processes of a run begin at once
                if not place.exists():
                    lines = _objects(path)
                    with atomic_write(place) as file:
                        file.writelines(f"{line}\n".encode("utf-8", "surrogatepass") for line in lines)
    except OSError as error:
        reason = one_sentence(error).rstrip(".")
        raise UserError(f"{path} cannot be read ({reason}): set OFA_CACHE to a folder.") from error
    return place


def _objects(path: str) -> list[str]:
    """The objects of a JSON array, each as one line of text."""
    try:
        text = decode_text(read_file(Path(path)))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error
    lines, at, decoder = [], _behind_space(text, 0) + 1, json.JSONDecoder()
    try:
        while (at := _behind_space(text, at)) < len(text) and text[at] != "]":
            start, (_, at) = at, decoder.raw_decode(text, at)
            lines.append(text[start:at].replace("\n", " ").replace("\r", " "))  # which are no part of a value
            at = _behind_space(text, at)
            at += text[at : at + 1] == ","
        if at == len(text):
            raise ValueError("its end is missing")
        if text[at + 1 :].strip():
            raise ValueError(f"it does not end with the bracket at character {at + 1}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON array ({error!s:.200}): check how it was made.") from error
    if not lines:
        raise UserError(f"{path} has no rows; check how it was made.")
    if lines[0][0] != "{":
        raise UserError(f"{path} is an array of {quoted(lines[0])} and so on, not of objects: check how it was made.")
    return lines


def _behind_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    return start if found is None else found.end()
