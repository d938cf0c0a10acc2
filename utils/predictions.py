"""Predictions of all processes -> one JSON file with every row exactly once, in input order."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.distributed import gather_objects, is_main
from utils.errors import UserError, one_sentence
from utils.files import atomic_write, parse_json, read_text
from utils.servers import Server

Record = dict[str, Any]
# At most 18 digits: JSON readers of other languages hold no more. pandas writes ids beside a missing one as 12.0.
_WHOLE_NUMBER = re.compile(r"([+-]?\d{1,18})(\.0*)?", re.ASCII)

logger = logging.getLogger(__name__)


def leaderboard_id(text: str) -> int | str:
    """The number that an id is ("12", and "12.0" of pandas), as leaderboards want it; any other id as it stands."""
    number = _WHOLE_NUMBER.fullmatch(text.strip())
    return int(number[1]) if number else text


def write_predictions(
    rows: list[tuple[int, Record]], path: str | Path, row_count: int, skipped: int = 0
) -> list[Record] | None:
    """Gather the records of all processes and write them as one JSON array; every process must call this.

    Args:
        rows: this process's (row number in the data file, record) pairs, in any order. Repeats of a row, which
            padding for equal shares brings, must hold the same record.
        path: the file; missing parent folders are made, an existing file is replaced in one step.
        row_count: number of rows of the data file. skipped: how many of them were left out as bad (--skip-bad-rows).

    Returns:
        The records in row order on rank 0, None elsewhere.

    Raises:
        UserError: rows missing, out of range or in conflict (on every process), or the file cannot be written.
    """
    merged = merge_rows([row for share in gather_objects(rows) for row in share], row_count, skipped)
    if not is_main():
        return None
    write_json(merged, path)
    return merged


def merge_rows(rows: list[tuple[int, Record]], row_count: int, skipped: int = 0) -> list[Record]:
    """Sort records by row number, each row once; UserError unless all but `skipped` of 0..row_count-1 are there."""
    by_row: dict[int, Record] = {}
    for row, record in rows:
        if not 0 <= row < row_count:
            raise UserError(f"A prediction is for row {row} of a file of {row_count} rows; evaluate again.")
        if by_row.setdefault(row, record) != record:
            raise UserError(
                f"Row {row} has two different predictions, {by_row[row]} and {record}; evaluate again with one process."
            )
    missing = row_count - len(by_row)
    if missing != skipped:
        first = next(row for row in range(row_count) if row not in by_row)
        raise UserError(
            f"{missing} of {row_count} rows have no prediction (the first is row {first}, counted from 0); "
            "evaluate the whole file again."
        )
    return [by_row[row] for row in sorted(by_row)]


def check_predictions(
    path: str | Path,
    fields: Mapping[str, type],
    count: int,
    ids: Sequence[Any] | None,
    server: Server | None = None,
) -> int:
    """Number of records of a written file, which must be what a leaderboard accepts.

    Args:
        fields: names and types of a record's fields, the id first.
        count: number of records there must be.
        ids: the id of each, in order, as the data file has it; None = not compared.
        server: where the file goes, if it needs integer ids.

    Raises:
        UserError: says what the first wrong record is.
    """
    try:
        records = parse_json(read_text(path))
    except OSError as error:
        raise UserError(f"Cannot read the predictions {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): write it with evaluate.py.") from error
    if not isinstance(records, list) or len(records) != count:
        content = f"{len(records)} records" if isinstance(records, list) else "no list"
        raise UserError(f"{path} holds {content}, {count} are needed: one for each row of the data file.")
    id_field = next(iter(fields))
    texts = 0
    for number, record in enumerate(records):
        place = f"{path}, record {number}"
        for name, field_type in fields.items():
            accepted = (int, str) if server and name == id_field else field_type
            value = record.get(name) if isinstance(record, dict) else None
            if not isinstance(value, accepted) or isinstance(value, bool):
                raise UserError(f"{place}: the field {name!r} must be there, of type {field_type.__name__}.")
        record_id = record[id_field]
        if ids is not None and _comparable(record_id, server) != _comparable(ids[number], server):
            raise UserError(f"{place}: the id is {record_id!r}, the data file has {ids[number]!r} there.")
        if server and isinstance(record_id, str):
            texts += 1
            if texts == 1:
                _refuse_or_warn(record_id, id_field, server, place)
    return len(records)


def _comparable(record_id: Any, server: Server | None) -> Any:
    return leaderboard_id(record_id) if server and isinstance(record_id, str) else record_id


def _refuse_or_warn(record_id: str, id_field: str, server: Server, place: str) -> None:
    """Says of the first id that is a text what the server wants; UserError where it would refuse the file."""
    number = leaderboard_id(record_id)
    if isinstance(number, int):
        message = f"{place}: {server.name} wants {id_field!r} as a number, of type int: {number}, not {record_id!r}"
        advice = "write the file again with evaluate.py"
    else:
        message = f"{place}: the {id_field!r} {record_id!r} is not an integer, which {server.name} needs"
        advice = "give the rows integer ids if you will submit the file"
    if not server.takes_texts:
        raise UserError(f"{message}; {advice}.")
    logger.warning("%s; %s.", message, advice)


def write_json(content: Any, path: str | Path, indent: int | None = None) -> None:
    """ASCII JSON, written so that a reader sees the old file or the new one; UserError if it cannot be."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(content, indent=indent).encode("ascii"))
    except OSError as error:
        reason = one_sentence(error)  # may name a folder above the file, or nothing
        raise UserError(f"Cannot write {reason if str(path) in reason else f'{path}: {reason}'}") from error
