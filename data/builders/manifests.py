"""Entries of the originals -> data files: JSON lines that point at image files, or TSV as released.

Files are written as parts, which a second start continues, and appear together when all are complete. A file
NAME.DIGEST.done beside each says so until everything is in its place: what a stopped program has put there is its own.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path, PurePath
from typing import NamedTuple

from tqdm import tqdm

from data.builders.coco_annotations import BadEntries, Box
from data.builders.image_codes import whole_lines
from data.builders.pretrain import Stored
from data.images import image_size
from data.named_rows import URL
from data.table_files import image_endings
from data.tasks import RowKind
from utils.errors import UserError, quoted, shortened
from utils.files import atomic_write, read_file, read_text

BATCH = 256  # rows written at once
DONE = ".done"
_SPACE = re.compile("[\t\r\n]+")  # what ends a column or a row
HEAD = 1 << 16  # bytes at the start of an image file, which nearly always tell its size
IMAGE_ID = 1  # the column of the released files that holds it, or a class's number, and that no task reads


class Entry(NamedTuple):
    """One row to be.

    Attributes:
        where: file and entry it comes from. values: texts by the task's names, without image and box.
        image: its file. image_id: what TSV files say of it beside the image. box: x, y, width, height in pixels.
    """

    where: str
    values: Mapping[str, str]
    image: Path | None = None
    image_id: str = ""
    box: Box | None = None


class DataFile(NamedTuple):
    """A file to write.

    Attributes:
        target: its path; the ending says whether it is TSV. kind: the task.
        extra: (entry) -> more values, which take long to read; ValueError for an entry that cannot be used.
    """

    target: Path
    entries: Sequence[Entry]
    kind: RowKind
    extra: Callable[[Entry], Mapping[str, str]] | None = None

    @property
    def is_tsv(self) -> bool:
        """Whether the file is TSV, with images in base64."""
        return self.target.suffix == ".tsv"

    def line(self, entry: Entry) -> bytes:
        """The row of an entry; ValueError if its image or box cannot be used."""
        values = {**entry.values, **(self.extra(entry) if self.extra else {})}
        if entry.image is not None and "image" in self.kind.names:
            stored = (_in_base64 if self.is_tsv else _at_its_path)(entry.image)
            values["image"] = stored.text
            if entry.box is not None:
                values["box"] = stored.box(entry.box)
                if not values["box"]:
                    size = f"{stored.width} x {stored.height} pixels"
                    raise ValueError(f"the bbox {quoted(entry.box)} has less than a pixel on its image of {size}")
        if not self.is_tsv:
            record = {name: values[name] for name in self.kind.names if name in values}
            return json.dumps(record, ensure_ascii=False).encode() + b"\n"
        values |= {name: _SPACE.sub(" ", text) for name, text in entry.values.items()}
        columns = {column: values.get(name, "") for name, column in self.kind.columns.items()}
        columns.setdefault(IMAGE_ID, _SPACE.sub(" ", entry.image_id))
        return "\t".join(columns.get(n, "") for n in range(max(self.kind.columns.values()) + 1)).encode() + b"\n"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors inside are ValueErrors that name the image."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"the image {str(path)!r} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


@lru_cache(maxsize=2 * BATCH)
def _in_base64(path: Path) -> Stored:
    """An image's base64 and size; ValueError if it is no image."""
    with _reading(path):
        data = read_file(path)
        return Stored(base64.urlsafe_b64encode(data).decode(), *image_size(data))


@cache
def _at_its_path(path: Path) -> Stored:
    """An image's path and size; ValueError if it is no image."""
    with _reading(path), open(path, "rb") as file:
        head = file.read(HEAD)
        try:
            size = image_size(head)
        except ValueError:  # some formats say it at the end
            size = image_size(head + file.read())
    return Stored(os.path.abspath(path), *size)


def unreadable(path: Path) -> str:
    """Why the file of an image cannot be used, or ''."""
    try:
        _at_its_path(path)
    except ValueError as error:
        return str(error)
    return ""


class ImageFolders:
    """Finds the files that annotations speak of.

    Args:
        folders: where images are, also in folders below. UserError for one that is missing.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"There is no folder {folder}: --images names the folders of the images.")
        self.find = cache(self._find)

    def _find(self, name: Hashable) -> Path:
        """The file of a path in a folder, of a name somewhere below, or of an id: a name without ending or its number.

        A folder in the name counts where the images lie in folders of this name.

        Raises:
            ValueError: there is none, with the path that was tried, or there are several.
        """
        text = str(name)
        if URL.match(text):
            raise ValueError(f"the image {quoted(text)} is a URL: download it and write the name of the file")
        name, found = PurePath(text), list[Path]()
        for folder in self.folders:
            try:
                if (folder / text).is_file() and not any((folder / text).samefile(path) for path in found):
                    found.append(folder / text)
            except (OSError, ValueError):  # too long for a name
                break
        within = name.parent if name.parent.name and not name.is_absolute() else None
        if not found and (within is None or not any((folder / within).is_dir() for folder in self.folders)):
            found = self._index().get(name.name, [])
            if not found and text.isascii() and text.isdigit():
                found = self._index().get(int(text), [])
            if within is not None:  # COCO's own names may have another one than the folder that was passed
                length = len(within.parts)
                found = [path for path in found if path.parent.parts[-length:] == within.parts] or found
        if not found:
            tried = shortened(repr(str(self.folders[0] / text)), 300)
            below = ", ".join(map(str, self.folders))
            raise ValueError(f"there is no image {tried}, nor one of this name or number below {below}")
        if len(found) > 1:
            two = " and ".join(shortened(repr(str(path)), 300) for path in found[:2])
            raise ValueError(f"the image {quoted(text)} may be {two}: name a folder of images that holds one of them")
        return found[0]

    @cache  # noqa: B019 - one object a run
    def _index(self) -> dict[Hashable, list[Path]]:
        """Images by name, by name without ending and by the number at its end; hidden ones are left out."""
        endings, index, seen = image_endings(), dict[Hashable, list[Path]](), set[str]()
        for folder in self.folders:
            for place, folders, names in os.walk(folder, followlinks=True):
                if (real := os.path.realpath(place)) in seen:  # a link to a folder above it has no end
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
                for name in sorted(names):
                    path = Path(place, name)
                    if path.suffix.lower() in endings and not name.startswith("."):
                        digits = path.stem[len(path.stem.rstrip("0123456789")) :]
                        for key in {name, path.stem, int(digits) if digits else name}:
                            index.setdefault(key, []).append(path)
        return index


def write(
    files: Sequence[DataFile],
    bad: BadEntries,
    workers: int = 1,
    extras: Mapping[Path, Callable[[Path], None]] | None = None,
) -> dict[Path, int]:
    """Writes all files, or continues what an earlier call with the same entries began; the rows of each.

    Args:
        bad: judges the entries that cannot be used. workers: threads that read images.
        extras: further files -> what writes them to a path, quickly.
    Raises:
        UserError: an entry that cannot be used, a file without rows, or one that exists already.
    """
    for file in files:
        if not file.entries:
            raise _no_rows(file)
    parts = [(file.target, *_write_part(file, bad, workers)) for file in files]
    for _, part, rows, empty in parts:
        with atomic_write(part.with_suffix(DONE)) as out:
            out.write(f"{rows} {empty}".encode())
    for target, part, _, empty in parts:
        if part.exists():
            _put(part, target, empty > 0)
    for path, make in (extras or {}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
    for target, *_ in parts:
        for stale in (*target.parent.glob(f"{target.name}.*.part"), *target.parent.glob(f"{target.name}.*{DONE}")):
            stale.unlink()
    return {target: rows for target, _, rows, _ in parts}


def check_new(path: Path, near: Path) -> None:
    """UserError for a file that exists, unless a stopped program has put it there; near: a data file of that program.

    Whether it was the same command is seen when the data file is written.
    """
    if path.exists() and not any(near.parent.glob(f"{near.name}.*{DONE}")):
        raise UserError(f"{path} exists already: delete it or choose another --output.")


def _put(part: Path, target: Path, has_empty: bool) -> None:
    """Makes a file of its part."""
    if not has_empty:
        os.replace(part, target)
        return
    with open(part, "rb") as lines, atomic_write(target) as out:
        out.writelines(line for line in lines if line != b"\n")
    part.unlink()


def _write_part(file: DataFile, bad: BadEntries, workers: int) -> tuple[Path, int, int]:
    """The part of a file, complete: a line for each entry, an empty one for what is skipped; rows and skipped ones."""
    digest = hashlib.sha256(repr((file.is_tsv, bad.skip)).encode())
    for entry in file.entries:
        digest.update(repr(entry).encode("utf-8", "surrogatepass"))
    part = file.target.with_name(f"{file.target.name}.{digest.hexdigest()[:8]}.part")
    if (mark := part.with_suffix(DONE)).exists():
        rows, empty = map(int, read_text(mark).split())
        bad.count += empty
        return part, rows, empty
    if file.target.exists():
        raise UserError(f"{file.target} exists already: delete it or choose another --output.")
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "r+b" if part.exists() else "w+b") as out, ThreadPoolExecutor(workers) as pool:
        done, empty = whole_lines(out)
        bad.count += empty
        with tqdm(total=len(file.entries), initial=done, desc=file.target.name, unit="row", mininterval=1) as bar:
            for first in range(done, len(file.entries), BATCH):
                batch = file.entries[first : first + BATCH]
                for line in _lines(file, batch, bad, pool):
                    empty += line == b"\n"
                    out.write(line)
                out.flush()
                os.fsync(out.fileno())
                bar.update(len(batch))
    if not len(file.entries) - empty:
        part.unlink()
        raise _no_rows(file)
    return part, len(file.entries) - empty, empty


def _no_rows(file: DataFile) -> UserError:
    return UserError(f"There are no rows for {file.target}: check the files and the folder of the images.")


def _lines(file: DataFile, batch: Sequence[Entry], bad: BadEntries, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    def line(entry: Entry) -> bytes | ValueError:
        try:
            return file.line(entry)
        except ValueError as error:
            return error

    for entry, made in zip(batch, pool.map(line, batch), strict=True):
        if isinstance(made, ValueError):
            bad.add(entry.where, str(made))
            made = b"\n"
        yield made
