"""Files of text rows of any size: rows by number, through an index that is built once and memory-mapped.

The index of `x.tsv` is `x.tsv.ofaidx` beside it or, where that folder cannot be written, a file in
`$OFA_CACHE` (default `~/.cache/ofa`). It holds a header (`_HEADER`) and, as little-endian uint64, the byte
offset of every row and the end of the last one: 8 bytes a row. It is rebuilt when the data file's size, inode or
times change, and when it is damaged.
"""

import contextlib
import fcntl
import hashlib
import operator
import os
import stat
import struct
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from utils.errors import UserError
from utils.files import BYTE_ORDER_MARK, atomic_write

_MAGIC, _VERSION = {False: b"OFA rows", True: b"OFA csv "}, 2  # by whether line ends in quotes end no row
_HEADER = struct.Struct("<8sQQqQqQQ")  # magic, version, stamp of the data file, checksum of the offsets, number of rows
_CHUNK = 1 << 20  # bytes; a chunk stays in the processor's cache between reading and searching
_SPARSE = 1024  # mean bytes a row from which one memchr per row beats numpy
_SHOW_PROGRESS = 10**9  # bytes


Row = tuple[Any, ...]  # texts; the file of an image is bytes where it is not base64


class ChangedFileError(UserError):
    """A data file is not what it was when it was opened."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        said = " was changed while it was in use; start again."
        super().__init__(os.fspath(path).removesuffix(said) + said)  # a worker process hands on the message


class Rows(Protocol):
    """A data file, as datasets read it."""

    path: str

    @property
    def columns(self) -> Sequence[int | str] | None:
        """What is read of a row: numbers or names of columns; None = all."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Row: ...

    def line(self, row: int) -> int:
        """Number of the row's line, from 1."""

    def place(self, row: int) -> str:
        """What messages call the row, such as `line 3`."""

    def sizes(self) -> np.ndarray | None:
        """Bytes of each row (N,), int64; None where only reading tells them."""

    def other_format(self) -> str | None:
        """What the file seems to be in place of what it should be."""


class Stamp(NamedTuple):
    """What tells one content of a data file from another."""

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int  # which programs cannot set, but which changes with name and permissions too

    def same_content(self, other: "Stamp") -> bool:
        # Without ctime: a rename or chmod between two openings is no reason to stop a run.
        return self[:3] == other[:3]


class NumberedRows(ABC):
    """Rows of a file or folder, by number from 0."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    @abstractmethod
    def __len__(self) -> int: ...

    def number(self, row: int) -> int:
        """A row's number from 0: negative ones count from the end. IndexError if there is no such row."""
        number = operator.index(row)
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {self.path}, which has {len(self)}")
        return number % len(self)

    def line(self, row: int) -> int:
        """Number of the row's line, from 1."""
        return row + 1

    def place(self, row: int) -> str:
        """What messages call the row."""
        return f"line {self.line(row)}"

    def sizes(self) -> np.ndarray | None:
        """Bytes of each row (N,), int64; None where only reading tells them."""
        return None


class IndexedFile(NumberedRows):
    """Rows of a UTF-8 text file as bytes; lines end in LF or CR-LF, and blank lines at the end are not rows.

    Safe in data loader workers, forked or spawned: reads have no shared position, and pickling reopens.

    Args:
        path: the file.
    Raises:
        UserError: missing or empty file, nowhere to write the index.
    """

    quoted: ClassVar[bool] = False  # whether a line end between double quotes belongs to a row

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._fd = _open_data(self.path, self)
        self._stamp = stamp_of(self._fd)
        self._offsets: np.ndarray | None = _open_index(self.path, self._fd, self._stamp, self.quoted)
        self._num_lines = len(self._offsets) - 1
        self._counted = 0, 0  # offset of a row, line ends before it

    def __len__(self) -> int:
        return self._num_lines

    def sizes(self) -> np.ndarray | None:
        """Bytes of each line (N,), int64."""
        return np.diff(self._opened()).astype(np.int64)

    def _opened(self) -> np.ndarray:
        """Offsets of the rows and of their end, also after unpickling."""
        if self._offsets is None:
            self._reopen()
        assert self._offsets is not None
        return self._offsets

    def _read(self, row: int) -> bytes:
        """The line without its end."""
        offsets = self._opened()
        stamp = stamp_of(self._fd)
        if stamp.size >= self._stamp.size and not stamp.same_content(self._stamp):  # a shorter one lacks the last rows
            raise ChangedFileError(self.path)
        start, stop = int(offsets[row]), int(offsets[row + 1])
        before = int(start > 0)  # the end of the row before is read too
        # Unlike seek and read, pread has no position that forked workers would move for each other.
        text = os.pread(self._fd, stop - start + before, start - before)
        if len(text) != stop - start + before:
            raise UserError(f"{self.path} became shorter while it was being read; start again.")
        end = len(text) - (2 if text.endswith(b"\r\n") else text.endswith(b"\n"))
        whole = end < len(text) or stop == int(offsets[-1])
        if not whole or text[:before] != b"\n"[:before] or (not self.quoted and text.find(b"\n", before, end) >= 0):
            raise UserError(
                f"The row index of {self.path} is wrong; delete {Path(self.path).name}.ofaidx beside it, or the "
                f".ofaidx files in {cache_folder()}."
            )
        # At the start of the file, or of one that was appended.
        mark = len(BYTE_ORDER_MARK) if text.startswith(BYTE_ORDER_MARK, before) else 0
        return text[before + mark : end]

    def _line_ends_before(self, row: int) -> int:
        """How many line ends stand before a row, also in the rows before it; quick if those were counted lately."""
        offsets = self._opened()
        stop = int(offsets[row])
        start, count = self._counted if self._counted[0] <= stop else (0, 0)
        while start < stop and (chunk := os.pread(self._fd, min(_CHUNK, stop - start), start)):
            start, count = start + len(chunk), count + chunk.count(b"\n")
        self._counted = stop, count
        return count

    def _reopen(self) -> None:
        """Open file and index after unpickling; the row numbers planned elsewhere must still hold."""
        self._fd = _open_data(self.path, self)
        stamp = stamp_of(self._fd)
        # The plan of the epoch counts on row numbers, so a file that has changed must not be indexed anew here.
        if stamp.same_content(self._stamp):
            self._offsets = _open_index(self.path, self._fd, stamp, self.quoted)
        if self._offsets is None or len(self._offsets) != self._num_lines + 1:
            raise ChangedFileError(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": -1, "_offsets": None}


def _open_data(path: str, owner: object) -> int:
    """File descriptor that closes with its owner."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # no wait on a pipe
    except FileNotFoundError:
        raise UserError(f"There is no data file {path}; check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    weakref.finalize(owner, os.close, descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UserError(f"{path} is not a regular file; pass the TSV file itself.")
    return descriptor


def stamp_of(file: int | str) -> Stamp:
    """What tells the content of an open file, or of the file of a path, from another."""
    status = os.stat(file)
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


def cache_folder() -> Path:
    """Where files go that are made of the user's and cannot stand beside them."""
    return Path(os.environ.get("OFA_CACHE") or Path.home() / ".cache" / "ofa")


def _index_places(path: str) -> Iterator[Path]:
    """Where an index may be: beside the file, then in the cache folder."""
    yield Path(f"{path}.ofaidx")
    digest = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()
    yield cache_folder() / f"{digest[:32]}.ofaidx"


def _open_index(path: str, descriptor: int, stamp: Stamp, quoted: bool) -> np.ndarray:
    """Offsets (rows + 1,) of a data file, memory-mapped; one process builds them while the others wait."""
    for place in _index_places(path):
        offsets = _load_index(place, descriptor, stamp, quoted)
        if offsets is not None:
            return offsets
    problem = ""
    for place in _index_places(path):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with locked(Path(f"{place}.lock")):
                offsets = _load_index(place, descriptor, stamp, quoted)  # somebody built it while we waited
                if offsets is None:
                    _build_index(path, descriptor, stamp, place, quoted)
                    offsets = _load_index(place, descriptor, stamp, quoted)
        except OSError as error:
            problem = str(error)
            continue
        if offsets is not None:
            return offsets
    raise UserError(f"The row index of {path} cannot be written ({problem}); set OFA_CACHE to a folder.")


def _load_index(place: Path, descriptor: int, stamp: Stamp, quoted: bool) -> np.ndarray | None:
    """Offsets if the index is whole and belongs to this content of the data file."""
    try:
        # The cache folder may be anybody's: a pipe of that name must not make us wait.
        with open(place, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size < _HEADER.size:
                return None
            magic, version, *found, checksum, rows = _HEADER.unpack(file.read(_HEADER.size))
            whole = status.st_size == _HEADER.size + 8 * (rows + 1)
            if not whole or magic != _MAGIC[quoted] or version != _VERSION or tuple(found) != stamp:
                return None
            # A plain view: indexing np.memmap itself is several times slower.
            offsets = np.asarray(np.memmap(file, "<u8", mode="r", offset=_HEADER.size))
            return offsets if _make_sense(offsets, checksum, _end_of_rows(descriptor, stamp.size)) else None
    except OSError:
        return None


def _make_sense(offsets: np.ndarray, checksum: int, stop: int) -> bool:
    """Whether offsets of at least one row have their checksum, begin at 0, rise, and end where the rows do."""
    # The checksum finds a damaged index, the order one that was made to look whole: a wrong offset would read nonsense
    # as rows. In chunks, as an index of billions of rows need not fit into memory.
    found, before = 0, -1
    for first in range(0, len(offsets), _CHUNK):
        part = offsets[first : first + _CHUNK]
        if int(part[0]) <= before or (part[1:] <= part[:-1]).any():
            return False
        found, before = zlib.crc32(part.data, found), int(part[-1])
    return found == checksum and len(offsets) > 1 and int(offsets[0]) == 0 and before == stop


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; the kernel frees the lock of a holder that died, so nobody waits for ever."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # whoever may write there must not have us open a file elsewhere
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        while not _same_file(descriptor, path):  # the former holder removed the file that we waited for
            os.close(descriptor)
            descriptor = os.open(path, flags, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock is let go
    finally:
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _build_index(path: str, descriptor: int, stamp: Stamp, place: Path, quoted: bool) -> None:
    """Write the index of a data file to `place`: complete or not at all."""
    stop = _end_of_rows(descriptor, stamp.size)
    if stop == 0:
        raise UserError(f"{path} has no rows; check how it was made.")
    with atomic_write(place) as file:  # ours alone while we hold the lock
        file.write(bytes(_HEADER.size))  # filled in last: checksum and number of rows are known at the end
        rows, checksum = _write_offsets(file, path, descriptor, stop, quoted)
        # Compared after reading: a file that grows meanwhile would get an index with the stamp of its beginning.
        if stamp_of(descriptor) != stamp:
            raise UserError(f"{path} changed while its rows were counted; start when it is complete.")
        file.seek(0)
        file.write(_HEADER.pack(_MAGIC[quoted], _VERSION, *stamp, checksum, rows))


def _write_offsets(file: BinaryIO, path: str, descriptor: int, stop: int, quoted: bool) -> tuple[int, int]:
    """Append the start of every row and the end of the last one; returns the number of rows and the checksum."""
    last, size, checksum = 0, 0, 0

    def append(offsets: np.ndarray) -> None:
        nonlocal last, size, checksum
        file.write(offsets.data)
        last, size, checksum = int(offsets[-1]), size + len(offsets), zlib.crc32(offsets.data, checksum)

    append(np.zeros(1, "<u8"))
    for ends in _line_ends(path, descriptor, stop, quoted):
        append(ends)
    if last != stop:  # no newline at the end of the file
        append(np.array([stop], "<u8"))
    return size - 1, checksum


def _end_of_rows(descriptor: int, size: int) -> int:
    """End of the last line that is not blank, 0 if there is none."""
    stop = size
    while stop > 0:
        start = max(0, stop - _CHUNK)
        text = os.pread(descriptor, stop - start, start).rstrip(b"\r\n")
        if text:
            content = start + len(text)
            ending = os.pread(descriptor, _CHUNK, content).find(b"\n")
            return size if ending < 0 else content + ending + 1
        stop = start
    return 0


def _line_ends(path: str, descriptor: int, stop: int, quoted: bool) -> Iterator[np.ndarray]:
    """Offsets (n,), uint64, n > 0, just behind the newlines in the first `stop` bytes, chunk by chunk.

    With `quoted`, newlines behind an odd number of double quotes are left out.
    """
    buffer = bytearray(_CHUNK)
    view, array = memoryview(buffer), np.frombuffer(buffer, np.uint8)
    start, before, sparse = 0, 0, False
    name, quiet = os.path.basename(path), stop < _SHOW_PROGRESS
    with tqdm(total=stop, desc=f"index {name}", unit="B", unit_scale=True, disable=quiet) as bar:
        while start < stop:
            length = os.preadv(descriptor, [view[: stop - start]], start)
            if length == 0:  # shorter than it was; the caller notices by its stamp
                return
            found = _find_sparse(buffer, length) if sparse else np.flatnonzero(array[:length] == ord("\n"))
            if quoted:
                quotes = np.flatnonzero(array[:length] == ord('"'))
                found = found[(before + np.searchsorted(quotes, found)) % 2 == 0]
                before += len(quotes)
            if len(found):
                yield np.add(found, start + 1, dtype="<u8", casting="unsafe")
            sparse = len(found) * _SPARSE < length
            start += length
            bar.update(length)


def _find_sparse(buffer: bytearray, length: int) -> np.ndarray:
    """Positions (n,) of the newlines among the first `length` bytes, fast when they are few."""
    found = []
    at = buffer.find(b"\n", 0, length)
    while at >= 0:
        found.append(at)
        at = buffer.find(b"\n", at + 1, length)
    return np.array(found, dtype=np.int64)
