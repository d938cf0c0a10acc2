"""What `predict.py --output` writes as a table: CSV or Parquet, made of the JSON lines that a run leaves beside it."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from data.arrow_rows import require_library, write_parquet
from utils.errors import UserError
from utils.files import atomic_write, read_text, text_lines
from utils.record_file import RecordFile


class RecordTable(RecordFile):
    """Records in `NAME.jsonl`, which a stopped run resumes, and all of them in `NAME` at the end of a run.

    Args:
        table: the path NAME, a .csv or .parquet file. field, inputs, run: as of `RecordFile`.
    Raises:
        UserError: a table that is not made of the records beside it, or as of `RecordFile`.
    """

    def __init__(
        self,
        table: Path,
        field: str,
        inputs: Iterable[str | os.PathLike[str]] = (),
        run: Mapping[str, Any] | None = None,
    ) -> None:
        self.table, inputs = table, list(inputs)
        records = table.with_name(f"{table.name}.jsonl")
        if table.exists() and not records.exists():
            raise UserError(f"{table} is there without {records}, which a run resumes: name another file.")
        if table.suffix.lower() == ".parquet":
            require_library(table)
        super().__init__(records, field, inputs, run)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            write_table(self.table, [json.loads(line) for line in text_lines(read_text(self.path))])


def write_table(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes records as a table with a column for each key: complete or not at all.

    In CSV, lists are JSON. In Parquet, ids of several types, and those beyond 64 bits, are texts.
    """
    keys = list(dict.fromkeys(key for record in records for key in record)) or ["id"]
    columns = {key: [record.get(key) for record in records] for key in keys}
    if path.suffix.lower() == ".parquet":
        large = any(isinstance(item, int) and not -(2**63) <= item < 2**63 for item in columns["id"])
        if large or len({type(item) for item in columns["id"]}) > 1:
            columns["id"] = [str(item) for item in columns["id"]]
        write_parquet(path, columns)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(keys)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([json.dumps(value) if isinstance(value, list) else value for value in row])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode(errors="backslashreplace"))  # names of files may be no UTF-8
