"""The same rows as every kind of file that training reads."""

import base64
import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from data.images import decode_base64

Record = dict[str, Any]


def write_tsv(path: Path, rows: list[Record]) -> Path:
    path.write_text("".join("\t".join(map(str, row.values())) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[Record], **style: Any) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), **style)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[Record]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, rows: list[Record]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[Record]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_shards(path: Path, rows: list[Record]) -> Path:
    path.mkdir(exist_ok=True)
    half = (len(rows) + 1) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        if part:
            write_parquet(path / f"train-{number:05}.parquet", part)
    return path


def write_saved(path: Path, rows: list[Record]) -> Path:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    shards = min(2, len(rows))
    Dataset.from_list(rows).save_to_disk(str(path), num_shards=shards)
    return path


def write_tar(path: Path, rows: list[Record]) -> Path:
    """The images as files, other values in a JSON file each."""
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            files = {"json": json.dumps(row).encode()}
            if "image" in row:
                others = {name: value for name, value in row.items() if name != "image"}
                files = {"jpg": image_bytes(row["image"]), "json": json.dumps(others).encode()}
            for ending, content in files.items():
                member = tarfile.TarInfo(f"{number:05}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_image_folder(path: Path, rows: list[Record], table: str = "metadata.jsonl") -> Path:
    (path / "photos").mkdir(parents=True, exist_ok=True)
    records = []
    for number, row in enumerate(rows):
        name = f"photos/{number:05} test.jpg"
        (path / name).write_bytes(image_bytes(row["image"]))
        records.append({"file_name": name, **{key: value for key, value in row.items() if key != "image"}})
    (write_csv if table.endswith("csv") else write_jsonl)(path / table, records)
    return path


def image_bytes(image: str | bytes) -> bytes:
    return image if isinstance(image, bytes) else decode_base64(image)


def in_base64(image: str | bytes) -> str:
    return image if isinstance(image, str) else base64.b64encode(image).decode()


# Kind of source -> name and what writes it. In the last two, images are files of their own.
TEXT_SOURCES = {"csv": ("a.csv", write_csv), "jsonl": ("a.jsonl", write_jsonl)}
ARROW_SOURCES = {
    "json": ("a.json", write_json),
    "parquet": ("a.parquet", write_parquet),
    "shards": ("shards", write_shards),
    "saved": ("saved", write_saved),
}
FILE_SOURCES = {"tar": ("a.tar", write_tar), "folder": ("[images] train", write_image_folder)}
SOURCES = {"tsv": ("a.tsv", write_tsv), **TEXT_SOURCES, **ARROW_SOURCES, **FILE_SOURCES}


def write_source(kind: str, folder: Path, rows: list[Record]) -> Path:
    """The rows, with images in base64, as a source; the path to read."""
    name, write = SOURCES[kind]
    return write(folder / name, rows)


def columns_of(kind: str, names: tuple[str, ...]) -> str | None:
    """--columns of a source that `write_source` wrote."""
    if kind != "tar":
        return None
    return ",".join(f"{name}={'jpg' if name == 'image' else f'json.{name}'}" for name in names)
