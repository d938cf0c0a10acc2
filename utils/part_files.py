"""Lines of JSON that several processes write, each to files of its own, and that outlive a stopped run."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import lock, parse_json
from utils.record_file import append

_NAME = re.compile(r"\d{6,}\.jsonl")


class OtherRunError(UserError):
    """The files were left by a run with other inputs or options."""


class PartFiles:
    """The folder `NAME.parts` beside an output: one file per process and run, which begins with what the run is.

    Args:
        output: the file NAME that the parts become. run: what decides about their lines; files of another are refused.
    """

    def __init__(self, output: Path, run: str) -> None:
        self.folder, self.run = folder_of(output), run
        self._file: FileIO | None = None

    def paths(self) -> list[Path]:
        """The files, by number."""
        return sorted(path for path in self.folder.glob("*.jsonl") if _NAME.fullmatch(path.name) and path.is_file())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps the output and its parts for this process; UserError if they are another's or cannot be written."""
        path = self.folder.with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab")
        except OSError as error:
            raise UserError(f"{path.parent} cannot be written ({error.strerror}): name another folder.") from error
        with file:
            if not lock(file):
                raise UserError(f"{path} is locked: another program writes these files; wait until it ends.")
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def lines(self, path: Path) -> Iterator[tuple[int, Any]]:
        """Where each whole line of a file begins, and its value.

        Raises:
            OtherRunError: the file is of another run. UserError: it is damaged.
        """
        with open(path, "rb") as file:
            header = file.readline()
            if not header.endswith(b"\n"):  # stopped while it was begun
                return
            if _value(header, path) != {"run": self.run}:
                raise OtherRunError(
                    f"{self.folder} was left by a run with other inputs, another checkpoint or other options: "
                    "repeat its command, remove the folder, or name another output."
                )
            start = len(header)
            for line in file:
                if line.endswith(b"\n"):
                    yield start, _value(line, path)
                start += len(line)

    def write(self, values: Iterable[Any]) -> None:
        """Appends a line for each value to this process's file, made by the first ones; OSError if the disk is full."""
        lines = b"".join(json.dumps(value).encode("ascii") + b"\n" for value in values)
        if self._file is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self.folder} cannot be made ({error.strerror}): name another output.") from error
            numbers = (int(path.stem) for path in self.paths())
            path = self.folder / f"{max(numbers, default=0) + 1:06}.jsonl"
            while self._file is None:
                try:
                    self._file = open(path, "xb", buffering=0)
                except FileExistsError:  # another process took the name
                    path = path.with_stem(f"{int(path.stem) + 1:06}")
            lines = json.dumps({"run": self.run}).encode() + b"\n" + lines
        append(self._file, lines, Path(self._file.name))

    def close(self) -> None:
        """Ends this process's file."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Deletes the folder, if there is one."""
        shutil.rmtree(self.folder, ignore_errors=not self.folder.exists())


def damaged(path: Path) -> UserError:
    """What is to say of a file with a line that was not written here."""
    return UserError(f"{path} is damaged: remove it, and its items are computed again.")


def folder_of(output: Path) -> Path:
    """Where the parts of an output are."""
    return output.with_name(f"{output.name}.parts")


def identity(paths: Iterable[str | os.PathLike[str]]) -> list[Any]:
    """Of each path whether and how a file there has changed: size and time of its last change."""
    found = [(os.fspath(path), os.stat(path) if os.path.exists(path) else None) for path in paths]
    return [(name, status and status.st_size, status and status.st_mtime_ns) for name, status in found]


def _value(line: bytes, path: Path) -> Any:
    try:
        return parse_json(line.decode())
    except (ValueError, RecursionError) as error:
        raise damaged(path) from error
