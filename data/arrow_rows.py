"""Tables that Hugging Face `datasets` reads: Parquet, webdataset tars, folders of classes, saved datasets.

No other file knows this library, an extra, and it is imported when such a table is opened. It makes an Arrow file of
the table once, below the cache folder, and maps it into memory.
"""

import logging
import os
import stat
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from glob import escape
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from data.named_rows import Table, field_of, is_in, names_of
from data.row_index import ChangedFileError, Stamp, cache_folder, stamp_of
from data.table_files import ENDINGS, FOLDER, SAVED, image_files, source_files
from utils.errors import UserError, one_sentence, shortened
from utils.files import atomic_write

logger = logging.getLogger(__name__)


class ArrowTable(Table):
    """Rows of a `.parquet` or `.tar` file, or of a folder of such files, of images or of `save_to_disk`.

    Images stay encoded, class labels become their names, and `a.b` is the field `b` of the column `a`.

    Raises:
        UserError: also if the library is not installed.
    """

    def __len__(self) -> int:
        return self._starts[-1]

    def _read_header(self) -> list[str]:
        data, self._sources = _load(self.path)
        if not len(data):
            raise UserError(f"{self.path} has no rows; check how it was made.")
        if os.path.isdir(self.path) and source_files(self.path)[0] == FOLDER:
            images = len(image_files(Path(self.path), recursive=True)[0])
            if images > len(data):
                reason = "formats and names of folders that imagefolder does not take"
                logger.warning("%s: %d of %d images are left out (%s).", self.path, images - len(data), images, reason)
        self._labels = {name: kind.names for name, kind in data.features.items() if hasattr(kind, "int2str")}
        self._read = [name for name in data.column_names if any(is_in(name, x) for x in self.source.values())]
        self._files = {part["filename"]: _stamp(part["filename"]) for part in data.cache_files}
        self._open()
        self._starts = [0, *accumulate(map(len, self._parts))]
        return list(names_of(data.features))

    def _open(self) -> None:
        import datasets

        self._check({**self._sources, **self._files})
        parts = map(datasets.Dataset.from_file, self._files)
        self._parts = [part.select_columns(self._read).with_format("arrow") for part in parts]

    def _check(self, stamps: Mapping[str, Stamp | None]) -> None:
        """UserError if files are no longer as they were."""
        if any(_stamp(path) != stamp for path, stamp in stamps.items()):
            raise ChangedFileError(self.path)

    def record(self, row: int) -> Mapping[str, Any]:
        """Values by column."""
        if not self._parts:
            self._open()
        part = bisect_right(self._starts, row) - 1
        # If a mapped file is written again, reading it kills the process. One look at a source a row is cheap.
        watched = [*islice(self._files.items(), part, part + 1)]
        watched += list(self._sources.items())[row % len(self._sources) :][:1] if self._sources else []
        self._check(dict(watched))
        (values,) = self._parts[part][row - self._starts[part]].to_pylist()
        for name, labels in self._labels.items():
            if isinstance(number := values.get(name), int):
                values[name] = labels[number] if 0 <= number < len(labels) else None
        return {column: field_of(values, column) for column in self.source.values()}

    def place(self, row: int) -> str:
        """What messages call the row: its number from 1 and, if it has one, the name of its image file."""
        try:
            image = self.record(row).get(self.source.get("image", ""))
        except ValueError:
            image = None
        name = str((image.get("path") or "") if isinstance(image, dict) else "")
        name = name.removeprefix(os.path.join(os.path.abspath(self.path), ""))
        return f"row {row + 1} ({shortened(name, 300)})" if name else f"row {row + 1}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": []}


def require_library(path: str | os.PathLike[str]) -> None:
    """UserError if the library that reads and writes a file is not installed."""
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise UserError(f"{path} needs Hugging Face datasets: pip install datasets.") from error


def _load(path: str) -> tuple[Any, dict[str, Stamp | None]]:
    """The `datasets.Dataset` of a file or folder, and the state of the files that say what the rows are.

    These are not single images, which are read when they are needed.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UserError(f"There is no data file {path} ({error.strerror}); check the path.") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is not a regular file; pass the file itself.")
    reader, files = source_files(path)
    if reader == FOLDER and not any(Path(path).iterdir()):
        raise UserError(f"{path} is an empty folder: pass one with images, Parquet files or tars, or a file.")
    require_library(path)
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # which would ask the network
    if not os.isatty(2):
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are raised, and would be said twice
    sources = {name: _stamp(name) for name in files}
    patterns = [os.path.join(escape(os.path.abspath(path)), "**")] if reader == FOLDER else list(map(escape, files))
    options: dict[str, Any] = {"drop_labels": False} if reader == FOLDER else {}  # classes also where there is one
    try:
        if reader == "parquet" and not (patterns := [escape(name) for name in files if _has_rows(name)]):
            raise UserError(f"{path} has no rows; check how it was made.")
        if reader == SAVED:
            return datasets.load_from_disk(path, keep_in_memory=False), sources
        options |= {"cache_dir": str(cache_folder() / "datasets"), "keep_in_memory": False}
        return datasets.load_dataset(reader, data_files={"rows": patterns}, split="rows", **options), sources
    except UserError:
        raise
    except Exception as error:  # of any library
        cause = error.__cause__ or error
        advice = "set OFA_CACHE to a folder" if isinstance(cause, OSError) and cause.errno else "check how it was made"
        if reader == ENDINGS[".tar"] and "types" in str(cause):
            advice = "give a value of the .json files the same type in all samples, or write a .jsonl file of paths"
        reason = one_sentence(cause).rstrip(".")
        raise UserError(f"{path} cannot be read as {reader} ({reason}): {advice}.") from error


def _has_rows(path: str) -> bool:
    """Whether a Parquet file has rows, without which the library does not read it."""
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows) > 0


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Writes columns of Python values as a file, complete or not at all; OSError if it cannot be written."""
    import pyarrow.parquet

    table = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
    with atomic_write(path) as file:
        pyarrow.parquet.write_table(table, file)


def _stamp(path: str) -> Stamp | None:
    try:
        return stamp_of(path)._replace(ctime_ns=0)  # as in `Stamp.same_content`
    except OSError:
        return None
