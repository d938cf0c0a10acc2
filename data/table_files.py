"""What a file or folder of a user is, by its names: which reader of Hugging Face `datasets` takes it, and --columns."""

import os
from collections.abc import Sequence
from mimetypes import guess_type
from pathlib import Path

from utils.errors import UserError
from utils.files import json_object

ENDINGS = {".parquet": "parquet", ".json": "json", ".tar": "webdataset", ".arrow": "arrow"}  # -> who reads the file
SAVED = "state.json"  # in the folder of `save_to_disk`
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # beside images, with their texts
SPLITS = "dataset_dict.json"  # in that of several splits
FOLDER = "imagefolder"


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
    files = [os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names]
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
