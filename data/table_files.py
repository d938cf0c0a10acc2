"""What a file or folder of a user is, by its names: which reader of Hugging Face `datasets` takes it, and --columns."""

import os
from collections import Counter
from collections.abc import Sequence
from mimetypes import guess_type
from pathlib import Path

from utils.errors import UserError
from utils.files import json_object

ENDINGS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}  # -> who reads the file
SAVED = "state.json"  # in the folder of `save_to_disk`
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # beside images, with their texts
SPLITS = "dataset_dict.json"  # in that of several splits
FOLDER = "imagefolder"
# Formats that Pillow knows by name only, or reads with the help of another program.
NOT_IMAGES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


def image_endings() -> frozenset[str]:
    """Endings of the files that Pillow reads as images, in lower case with their dot."""
    from PIL import Image  # not before the command line is read

    endings = Image.registered_extensions()
    return frozenset(
        name
        for name, format_name in endings.items()
        if format_name in Image.OPEN and format_name not in NOT_IMAGES and name != ".ps"
    )


def image_files(folder: Path, recursive: bool) -> tuple[list[Path], str]:
    """Images in a folder, or also in the folders below it, sorted; and a sentence on what is left out, or ''.

    Hidden files and what is in hidden folders are left out.
    """
    endings, images = image_endings(), []
    others: Counter[str] = Counter()
    folders = 0
    for path in folder.rglob("*") if recursive else folder.iterdir():
        if any(part.startswith(".") for part in path.relative_to(folder).parts):  # such as ._a.jpg of a Mac
            others["hidden"] += path.is_file()
        elif path.is_dir():
            folders += not recursive
        elif path.exists() and not path.is_file():  # a pipe would be waited for
            others["pipe or device"] += 1
        elif path.suffix.lower() in endings:
            images.append(path)
        else:
            others[path.suffix.lower() or "no extension"] += 1
    parts = []
    if hidden := others.pop("hidden", 0):
        parts.append(f"{hidden} hidden files")
    if others:
        counts = ", ".join(f"{count} x {ending}" for ending, count in others.most_common(5))
        parts.append(f"{others.total()} files without an image extension ({counts})")
    if folders:
        parts.append(f"{folders} subfolders (--recursive reads them)")
    return sorted(images), f"{folder}: left out {' and '.join(parts)}." if parts else ""


def is_table(path: str) -> bool:
    """Whether a file or folder holds rows that `ArrowTable` reads, and no images beside them."""
    place = Path(path)
    if not os.path.isdir(path):
        return place.suffix.lower() in ENDINGS
    return (place / SAVED).exists() or (place / SPLITS).exists() or source_files(path)[0] != FOLDER


def source_files(path: str) -> tuple[str, list[str]]:
    """Who reads a table, and the files that it must not find changed; UserError for several splits in one folder."""
    place = Path(path).absolute()
    if not place.is_dir():
        return ENDINGS[place.suffix.lower()], [str(place)]
    if (place / SAVED).exists():
        return SAVED, [str(place / SAVED)]
    if (place / SPLITS).exists():
        splits = ", ".join(sorted(part.name for part in place.iterdir() if (part / SAVED).exists()))
        raise UserError(f"{path} holds several splits: pass the folder of one of them ({splits}).")
    files = []
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    metadata = sorted(name for name in files if os.path.basename(name) in METADATA)
    parquet = sorted(name for name in files if name.lower().endswith(".parquet") and name not in metadata)
    if parquet:
        return ENDINGS[".parquet"], parquet
    tars = sorted(name for name in files if name.lower().endswith(".tar"))
    if tars and not any((guess_type(name)[0] or "").startswith("image/") for name in files):
        return ENDINGS[".tar"], tars
    return FOLDER, metadata


def column_names(columns: str | None, names: Sequence[str]) -> dict[str, str]:
    """The value of --columns, `image=file_name,text=caption`, as a dictionary; UserError for any other.

    A column whose name holds a comma needs the other form, `{"text": "caption, long"}`.
    """
    columns, shown = columns or "", ", ".join(names)
    if columns.lstrip().startswith("{"):
        try:
            given = json_object(columns)
        except ValueError as error:
            raise UserError(f'--columns={columns}: {error}, write {{"NAME": "COLUMN"}}.') from error
        for name, column in given.items():
            if name not in names or not isinstance(column, str) or not column:
                raise UserError(f"--columns={columns}: {name!r} is not one of {shown} with the name of a column.")
        return given
    found: dict[str, str] = {}
    for part in columns.split(",") if columns else ():
        name, mark, column = (text.strip() for text in part.partition("="))
        if name not in names or not column:
            raise UserError(
                f"--columns={columns}: {part!r} is not NAME=COLUMN, where NAME is one of {shown}; if a column's name "
                'holds a comma, write JSON, {"NAME": "COLUMN"}.'
            )
        if name in found:
            raise UserError(f"--columns={columns} names two columns for {name!r}: leave one out.")
        found[name] = column
    return found
