"""The door to data files of every kind: what reads a file or folder, and its rows as a task reads them."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.adapted_tables import JsonArray, MetadataFolder
from data.arrow_rows import ArrowTable
from data.named_rows import URL, Table
from data.table_files import ENDINGS, FOLDER, column_names, source_files
from data.text_tables import DELIMITERS, CsvTable, JsonLines, PathTsv
from data.tsv import TsvFile
from utils.errors import UserError
from utils.files import BYTE_ORDER_MARK

if TYPE_CHECKING:
    from data.base import DataConfig
    from data.tasks import RowKind


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
