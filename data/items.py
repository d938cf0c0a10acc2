"""What `predict.py` reads: images, folders, texts, tables, JSONL and TSV files as one stream of items."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data.row_index import ChangedFileError, Rows
from data.table_files import SAVED, image_files, is_table
from data.tsv import LOOKED_AT, TsvFile, check_format
from utils.errors import BadRowError, UserError, quoted
from utils.files import json_object, read_text, text_lines, whole_characters

SHORTEST_IMAGE = 40  # characters of base64
LONGEST_WORD = 1000  # characters; a text of more and of these only is an image
IMAGE = re.compile(r"[\w+/=:;,'-]+", re.ASCII)  # base64, in the ways of all makers
PATH = re.compile(r"(~|\.{0,2})/\S*|.*/", re.DOTALL)  # what is no text, although no file is there
# What is no text to summarize or draw, but a file that is not there or not read.
FILE_ENDINGS = (
    ".bz2", ".doc", ".docx", ".gz", ".htm", ".html", ".json", ".md", ".odt", ".parquet", ".pdf", ".rtf",
    ".text", ".xls", ".xlsx", ".xml", ".zip",
)  # fmt: skip


@dataclass
class Item:
    """One thing to answer.

    Attributes:
        where: its place, for messages. id: None = its number. problem: why it cannot be answered, if it cannot.
        values: its image (path or encoded file) and texts, by name.
    """

    where: str
    id: Any = None
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


class Source(NamedTuple):
    """An input.

    Attributes:
        size: how many items it has.
        items: (numbers, unread, empty) -> items, as of `read`.
        left_out: a sentence on the files of a folder that are no items, if there are any.
        has: names of what items may have; None = each item its own.
    """

    size: int
    items: Callable[[range, Collection[str], Collection[str]], Iterator[Item]]
    left_out: str = ""
    has: Collection[str] | None = None

    def read(
        self, unread: Collection[str] = (), empty: Collection[str] = (), numbers: range | None = None
    ) -> Iterator[Item]:
        """Items.

        Args:
            unread, empty: of a TSV file, columns that are left out, and those in which a text without a character is a
                text; in others it is missing.
            numbers: consecutive numbers below `size`; None = all.
        """
        return self.items(range(self.size) if numbers is None else numbers, unread, empty)


def open_items(
    path: str,
    names: Sequence[str],
    selected_cols: str,
    recursive: bool = False,
    columns: Mapping[str, str] | None = None,
    image_root: str | None = None,
) -> Source:
    """The items of an input.

    Args:
        path: a file or folder; where no images are asked for, also a text.
        names: the names of what an item has, in the order of the columns of a TSV file. selected_cols: these columns.
        recursive: read the images in folders below a folder too. columns: name -> key or column, where they differ.
        image_root: folder that paths of images start from; None = the one of the file, and none in TSV files.

    Raises:
        UserError: an input that is missing or holds nothing.
    """
    if not path.strip():
        raise UserError("An input is empty: pass a file, a folder or a text.")
    place, ending = Path(path), Path(path).suffix.lower()
    if ending == ".tsv":
        rows = _tsv(path, names, selected_cols, image_root)
        if len(rows.columns or ()) > len(names):
            raise UserError(f"--selected-cols {selected_cols}: the columns are {', '.join(names)}.")
        check_format(rows, len(rows.columns or ()))
        _check_columns(rows, names, selected_cols)
        read = names[: len(rows.columns or ())]
        return Source(len(rows), lambda *which: _rows(rows, names, *which), has=read)
    if ending == ".csv" or (ending != ".json" and is_table(path) and not _images_of(place, recursive)):
        return _table(path, names, columns or {}, image_root)
    if ending == ".jsonl":
        lines = _lines(place)
        root = place.parent if image_root is None else Path(image_root)
        return Source(len(lines), lambda numbers, *_: object_items(path, lines, names, columns or {}, root, numbers))
    if "image" not in names:
        if ending != ".txt" and (ending in FILE_ENDINGS or (ending and os.path.isfile(path)) or PATH.fullmatch(path)):
            raise UserError(
                f"{path} looks like a file, but texts are read from .txt, .csv, .jsonl and .tsv files: pass one of "
                "those, or put a text that looks like a file name into a .txt file."
            )
        texts = _lines(place) if ending == ".txt" else [path]
        items = [Item(f"text {quoted(text)}", None, {names[-1]: text}) for text in texts]
        return Source(len(items), lambda numbers, *_: iter(items[numbers.start : numbers.stop]), has=names[-1:])
    if ending == ".json":
        raise UserError(f"{path} is JSON, but objects are read from .jsonl files: write one object per line.")
    images, left_out = [place], ""
    if os.path.isdir(path):
        images, left_out = image_files(place, recursive)
        if not images:
            raise UserError(f"{place} holds no images: name another folder. {left_out}".rstrip())
    items = [Item(str(file), str(file), {"image": str(file)}) for file in images]
    return Source(len(items), lambda numbers, *_: iter(items[numbers.start : numbers.stop]), left_out, ("image",))


def _tsv(path: str, names: Sequence[str], selected_cols: str, image_root: str | None) -> TsvFile:
    if image_root is None or "image" not in names:
        return TsvFile(path, selected_cols)
    from data.text_tables import PathTsv  # brings torch

    return PathTsv(path, selected_cols, names.index("image"), image_root)


def _check_columns(rows: TsvFile, names: Sequence[str], selected_cols: str) -> None:
    """UserError if none of the first rows can be read with these columns: they are those of another task's file."""
    if len(rows) == 1:
        return
    problem = ""
    for number in range(min(len(rows), LOOKED_AT)):
        try:
            values = dict(zip(names, rows[number], strict=False))
        except BadRowError as error:
            problem = problem or f"line {number + 1}: {error.reason}"
            continue
        image = values.pop("image", None)
        if isinstance(image, bytes):  # the content of a file
            return
        texts = [name for name, value in values.items() if len(value) > LONGEST_WORD and IMAGE.fullmatch(value)]
        if image and not (len(image) >= SHORTEST_IMAGE and IMAGE.fullmatch(image, endpos=LONGEST_WORD)):
            reason = f"the column of the image holds {quoted(image)}, which is not base64 of an image"
            problem = problem or f"line {number + 1}: {reason}"
        elif texts:
            problem = problem or f"line {number + 1}: the column of the {texts[0]} holds images"
        elif image != "":
            return  # a row that can be read
    if problem:
        raise UserError(
            f"{rows.path}, {problem}: columns {selected_cols} are read as {', '.join(names)}; name others in "
            "this order with --selected-cols."
        )


def _lines(path: Path) -> list[str]:
    """Lines of a file that are not blank, at least one."""
    try:
        lines = [line for line in text_lines(read_text(path)) if line.strip()]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): write it again.") from error
    if not lines:
        raise UserError(f"{path} is empty: write one item per line.")
    return lines


def _images_of(folder: Path, recursive: bool) -> bool:
    """Whether a folder is read for its images."""
    return folder.is_dir() and not (folder / SAVED).exists() and bool(image_files(folder, recursive)[0])


def _table(path: str, names: Sequence[str], columns: Mapping[str, str], image_root: str | None) -> Source:
    """The rows of a table, whose columns have names."""
    from data.tables import table_class  # brings torch
    from data.text_tables import CsvTable

    kind = table_class(path) or CsvTable
    there = kind(path, ()).header
    known = [name for name in names if name in columns or name in there]
    if not set(known) - {"id"}:
        raise UserError(
            f"{path} has none of the columns {', '.join(names)}: name them so in its header, which is "
            f"{quoted(there)}, or with --columns."
        )
    rows = kind(path, known, columns, known, image_root)
    rows.plain_ids = True
    return Source(len(rows), lambda *which: _rows(rows, known, *which), has=known)


def _rows(
    rows: Rows, names: Sequence[str], numbers: range, unread: Collection[str], empty: Collection[str]
) -> Iterator[Item]:
    from data.images import image_file  # brings torch, for which a wrong path shall not wait

    for number in numbers:
        item = Item(f"{rows.path}, {rows.place(number)}")
        try:
            values: dict[str, Any] = dict(zip(names, rows[number], strict=False))
            item.id = values.pop("id", None)
            if item.id == "":
                item.id = None
            if values.get("image"):
                values["image"] = image_file(values["image"])
            texts = {name: value for name, value in values.items() if name not in unread}
            item.values = {name: value for name, value in texts.items() if value or name in empty}
        except ChangedFileError:
            raise
        except BadRowError as error:
            item.problem = error.reason
        except ValueError as error:
            item.problem = str(error)
        yield item


def object_items(
    path: str, objects: Sequence[Any], names: Sequence[str], columns: Mapping[str, str], root: Path, numbers: range
) -> Iterator[Item]:
    """The items that some of the JSON objects, or lines of them, say; their images start from `root`."""
    for number in numbers:
        line, item = objects[number], Item(f"{path}, object {number + 1}")
        try:
            values = json_object(line) if isinstance(line, str) else line
            if not isinstance(values, dict):
                raise ValueError("it is not a JSON object")
            item.id = values.get(columns.get("id", "id"))
            found = {name: values.get(columns.get(name, name)) for name in names if name != "id"}
            item.values = {name: value for name, value in found.items() if value is not None}
        except ValueError as error:
            item.problem = str(error)
        check_values(item)
        if not item.problem and "image" in item.values:
            item.values["image"] = str(root / item.values["image"])
        yield item


def check_values(item: Item) -> None:
    """Notes what is wrong with the types of an item's id and values."""
    if item.id is not None and not isinstance(item.id, str | int):
        item.id, item.problem = None, "its id is neither a string nor an integer"
    texts = {name: value for name, value in item.values.items() if isinstance(value, str)}
    if half := [name for name, value in texts.items() if not whole_characters(value)]:
        item.problem = f"its {half[0]!r} holds half of a surrogate pair, which is not a character"
    if wrong := [name for name in item.values if name not in texts]:
        item.problem = f"its {wrong[0]!r} is not a text"
