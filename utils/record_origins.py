"""`NAME.run` beside records NAME: what decides about all of them, and a digest of the item that each is of.

A run that resumes the records must not take those of another question, checkpoint or item for its own. The first line
is an object of options, the others are `[id, row, digest]` of records. A record without a line is believed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError, one_sentence, quoted
from utils.files import atomic_write, parse_json, read_text

SAMPLE = 1 << 20  # bytes
Key = tuple[Any, int | None]  # id and "row" of a record


class Origins:
    """The file NAME.run.

    Args:
        records: the file NAME. options: name -> a value that JSON has, or what `content_of` says of a file.
    """

    def __init__(self, records: Path, options: Mapping[str, Any]) -> None:
        self.records, self.options = records, options
        self.path = records.with_name(f"{records.name}.run")

    @property
    def digest(self) -> str:
        """Tells these options from others, wherever files lie."""
        options = {name: value[1:] if isinstance(value, list) else value for name, value in self.options.items()}
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]

    def read(self) -> dict[Key, str]:
        """Digests of records; UserError if they are of a run with other options."""
        if not self.path.exists():
            return {}
        try:
            first, *lines = read_text(self.path).splitlines(keepends=True)
            there = dict(parse_json(first).items())
            whole = (parse_json(line) for line in lines if line.endswith("\n"))  # a kill may have torn the last one
            digests = {(item_id, row): str(digest) for item_id, row, digest in whole}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{self.path} cannot be read ({one_sentence(error).rstrip('.')}): remove it.") from error
        for name, now in self.options.items():
            if name in there and not _same(there[name], now):
                raise UserError(
                    f"{self.records} holds records of another run, which had {_shown(name, there[name])}; this one has "
                    f"{_shown(name, now)}: name another file, or remove {self.path.name} beside it to keep them."
                )
        return digests

    def begin(self, digests: Mapping[Key, str]) -> None:
        """Writes the file anew, with the digests of the records that are there."""
        with atomic_write(self.path) as file:
            file.write(f"{json.dumps(self.options)}\n".encode())
            file.write(_lines(digests))

    def add(self, digests: Mapping[Key, str]) -> None:
        """Appends digests of records that have been written."""
        with open(self.path, "ab") as file:
            file.write(_lines(digests))

    def other_item(self, item_id: Any, where: str) -> UserError:
        """What is to say of a record of the same id whose item was another one."""
        return UserError(
            f"{self.records} holds a record for the id {quoted(item_id)}, and {where} has another image or text than "
            f"the item it was made of: name another file, or remove {self.path.name} beside it to keep the records."
        )


def _lines(digests: Mapping[Key, str]) -> bytes:
    return b"".join(json.dumps([*key, digest]).encode("ascii") + b"\n" for key, digest in digests.items() if digest)


def content_of(path: str) -> list[Any]:
    """A file's path, and a digest of its size and parts of its content; in a folder those of the largest file.

    Checkpoints differ in their tensors, and reading all of a large one would take seconds.
    """
    file = path
    if os.path.isdir(path):
        files = [entry for entry in os.scandir(path) if entry.is_file()]
        file = max(files, key=lambda entry: (entry.stat().st_size, entry.name)).path if files else os.devnull
    digest = hashlib.blake2b(digest_size=16)
    with open(file, "rb") as content:
        size = os.fstat(content.fileno()).st_size
        digest.update(str(size).encode())
        for start in (0, size // 2, max(0, size - SAMPLE)):
            content.seek(start)
            digest.update(content.read(SAMPLE))
    return [path, digest.hexdigest()]


def _same(there: Any, now: Any) -> bool:
    if isinstance(there, list) and isinstance(now, list):  # files, which may have been moved
        return there[1:] == now[1:]
    return bool(there == now)


def _shown(name: str, value: Any) -> str:
    """An option and its value, in a message."""
    flag = "the command" if name == "command" else f"--{name if ' ' in name else name.replace('_', '-')}"
    if value in (None, "True"):
        return f"no {flag}" if value is None else flag
    return f"{flag} {quoted(value[0] if isinstance(value, list) else value)}"
