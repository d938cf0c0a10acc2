"""The one door to text files of users, and files that are always whole."""

import errno
import fcntl
import json
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from utils.errors import UserError, quoted

BYTE_ORDER_MARK = "\ufeff".encode()
logger = logging.getLogger(__name__)
_LINE_END = re.compile(r"\r\n|\n|\r")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Content of a file or pipe; OSError if it fails, and for a device, which may have no end.

    A pipe that nobody writes to is empty: it is not waited for.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        kind = os.fstat(file.fileno()).st_mode
        if stat.S_ISBLK(kind) or (stat.S_ISCHR(kind) and not os.isatty(file.fileno())):
            raise OSError(errno.EINVAL, "it is a device, not a file", os.fspath(path))
        os.set_blocking(file.fileno(), True)
        return file.read()


def read_text(path: str | os.PathLike[str]) -> str:
    """Content of a UTF-8 text file without a byte order mark; OSError or UnicodeDecodeError (a ValueError) if it fails.

    Every program reads the text files of its users through here or through `decode_text`.
    """
    return decode_text(read_file(path))


def decode_text(data: bytes) -> str:
    """Text of UTF-8 bytes without the byte order mark that spreadsheets put in front; else UnicodeDecodeError."""
    return data.decode("utf-8-sig")


def text_lines(text: str) -> list[str]:
    """Lines without their ends: LF, CR-LF or CR.

    Unlike `str.splitlines` it leaves U+2028, U+0085 and form feeds inside a line. A line end at the end starts no line.
    """
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


class RepeatedKeyError(ValueError):
    """An object of a JSON text has a key twice, of which Python's reader would take the last in silence."""


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of keys and values, for `json.loads(object_pairs_hook=...)`; RepeatedKeyError for a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RepeatedKeyError(f"it has the key {quoted(twice)} twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=unrepeated)  # made once, which is as quick as reading without the check


def parse_json(text: str) -> Any:
    """Content of a JSON text of a user; ValueError for anything else and for a key twice, or RecursionError."""
    return _DECODER.decode(text)


def json_object(line: str | bytes) -> dict[str, Any]:
    """The object of a line of JSON; ValueError for anything else."""
    try:
        found = parse_json(decode_text(line) if isinstance(line, bytes) else line)
    except RepeatedKeyError:
        raise
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def whole_characters(text: str) -> bool:
    """Whether a text has no half of a surrogate pair: JSON can hold such halves, UTF-8 and tokenizers cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def nearest_existing(path: Path) -> Path:
    """The path itself, or the lowest folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def check_folder(folder: Path, flag: str) -> None:
    """UserError unless files can be written to a folder that is there or can be made; nothing is made."""
    there = nearest_existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "does not allow it" if there.is_dir() else "is not a folder"
        raise UserError(f"{flag}={folder} cannot be written to ({there} {reason}): name another folder.")


def lock(file: IO[Any]) -> bool:
    """Locks an open file for this process until it ends or closes it; False if another has it.

    The lock is the process's own (unlike flock's, which its data loaders would share), so that it ends with it.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # some network file systems cannot
        logger.warning(
            "%s cannot be locked (%s): do not start a second program that writes it.", file.name, error.strerror
        )
    return True


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write to; at the end of the block, and only then, `path` holds it.

    If the block raises, or the process dies, what stood at `path` is untouched; a killed process leaves `<path>.tmp`
    behind, which the next call removes; what a link of that name points to is left alone. Two processes must not
    write the same path at once. Raises OSError, also where `path` is a device or a pipe, which a rename would destroy.
    """
    path = Path(path)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "wb", opener=_create) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if not isinstance(error, FileExistsError):  # then the file is another process's
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a failed write does not say where
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def _create(path: str, flags: int) -> int:
    """Opens a file that does not exist yet; nobody can put a link in its way."""
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o666)
