"""Files that are always whole: written beside their place, flushed to disk, then renamed."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def _create(path: str, flags: int) -> int:
    """Opens a file that does not exist yet; nobody can put a link in its way."""
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o666)
