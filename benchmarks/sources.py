"""Caption training samples per second from every kind of source against TSV, and the start of a long JSONL manifest.

Run from the repository root: python -m benchmarks.sources [--rows N] [--passes N] [--manifest-rows N]
"""

import argparse
import base64
import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.loader import BPE_DIR, write_photographs
from data.base import DataConfig
from data.caption import CaptionDataset
from data.images import image_file
from data.tables import open_rows
from data.tasks import TASKS
from data.text import Vocabulary
from data.tsv import TsvFile

WORKERS = (0, 2)
NAMES = {"tsv": "TSV, base64", "csv": "CSV, paths", "jsonl": "JSONL, paths", "parquet": "Parquet, bytes",
         "saved": "save_to_disk, bytes", "folder": "image folder", "tar": "webdataset"}  # fmt: skip
# Seconds and MiB above the import, said by a process that opens a manifest and reads its last row.
OPEN = """
import resource, sys, time
from data.text_tables import JsonLines
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
before, start = memory(), time.perf_counter()
rows = JsonLines(sys.argv[1], ("id", "caption"))
rows[len(rows) - 1]
print(time.perf_counter() - start, memory() - before, len(rows))
"""


def write_sources(folder: Path, rows: int) -> dict[str, tuple[Path, str | None]]:
    """Kind -> path and --columns of the same rows, written to an empty folder."""
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    write_photographs(folder / "rows.tsv", rows)
    photos = folder / "photos"
    photos.mkdir()
    encoded: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for name, image, caption in TsvFile(folder / "rows.tsv", "0,1,2"):  # type: ignore[attr-defined]
            data = base64.b64decode(image)
            (photos / f"{name}.jpg").write_bytes(data)
            encoded.append({"id": name, "image": data, "caption": caption})
            listed.append({"id": name, "file_name": f"{name}.jpg", "caption": caption})
            for ending, content in (("jpg", data), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{int(name):09}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with open(photos / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(listed[0]))
        writer.writeheader()
        writer.writerows(listed)
    for name in ("rows.jsonl", "metadata.jsonl"):
        (photos / name).write_text("".join(json.dumps(record) + "\n" for record in listed))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(encoded), folder / "rows.parquet")
    Dataset.from_list(encoded).save_to_disk(str(folder / "saved"))
    return {
        "tsv": (folder / "rows.tsv", None),
        "csv": (photos / "rows.csv", "image=file_name"),
        "jsonl": (photos / "rows.jsonl", "image=file_name"),
        "parquet": (folder / "rows.parquet", None),
        "saved": (folder / "saved", None),
        "folder": (photos, None),
        "tar": (folder / "rows.tar", "image=jpg,caption=txt,id=__key__"),
    }


def samples_per_second(
    sources: dict[str, tuple[Path, str | None]], workers: int, batch_size: int, passes: int
) -> Iterator[tuple[str, float]]:
    """Kind and rate of its fastest pass; passes take turns, so that the machine is as busy for one as for the other."""
    vocab, loaders, best = Vocabulary.load(BPE_DIR), {}, dict.fromkeys(sources, 0.0)
    for kind, (path, columns) in sources.items():
        config = DataConfig(patch_image_size=480, max_tgt_length=20, columns=columns)
        dataset = CaptionDataset(open_rows(str(path), "0,1,2", TASKS["caption"], config), vocab, config, "train")
        loaders[kind] = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, collate_fn=dataset.collater)
    for _ in range(passes):
        for kind, loader in loaders.items():
            start = time.perf_counter()
            seen = sum(batch["nsentences"] for batch in loader)
            best[kind] = max(best[kind], seen / (time.perf_counter() - start))
    yield from best.items()


def microseconds_a_row(path: Path, columns: str | None, passes: int) -> float:
    """CPU time of a row up to the bytes of its image file, of the fastest pass: it shows what decoding hides."""
    rows = open_rows(str(path), "0,1,2", TASKS["caption"], DataConfig(columns=columns))
    best = float("inf")
    for _ in range(passes):
        start = time.process_time()
        for number in range(len(rows)):
            image_file(rows[number][1])
        best = min(best, time.process_time() - start)
    return best / len(rows) * 1e6


def write_manifest(path: Path, rows: int) -> None:
    """A JSONL file of captions and paths."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            caption = "a temple under a blue sky and a flower in the sun"
            file.write(json.dumps({"id": number, "image": f"train2014/{number:012}.jpg", "caption": caption}) + "\n")


def main() -> None:
    """Print three markdown tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.sources", description="Time sources of training data.")
    parser.add_argument("--rows", type=int, default=400, help="rows to load (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples in a batch (default %(default)s)")
    parser.add_argument("--passes", type=int, default=3, help="passes over each source (default %(default)s)")
    parser.add_argument("--manifest-rows", type=int, default=2_000_000, help="rows to open (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.environ["OFA_CACHE"] = name  # converted tables go with it
        sources = write_sources(Path(name), args.rows)
        print("| source | workers | samples/s | against TSV |\n| --- | --- | --- | --- |")
        for workers in WORKERS:
            rates = dict(samples_per_second(sources, workers, args.batch_size, args.passes))
            for kind, rate in rates.items():
                print(f"| {NAMES[kind]} | {workers} | {rate:.1f} | {rate / rates['tsv']:.2f} |", flush=True)
        print("\n| source | CPU time of a row without decoding, us |\n| --- | --- |")
        for kind, (path, columns) in sources.items():
            print(f"| {NAMES[kind]} | {microseconds_a_row(path, columns, args.passes):.0f} |", flush=True)
        manifest = Path(name, "manifest.jsonl")
        write_manifest(manifest, args.manifest_rows)
        print("\n| start of a manifest | rows | seconds | MiB above the import |\n| --- | --- | --- | --- |")
        for start in ("first", "second"):
            done = subprocess.run(
                [sys.executable, "-c", OPEN, str(manifest)], capture_output=True, text=True, check=True
            )
            seconds, memory, rows = done.stdout.split()
            print(f"| {start} | {int(rows):,} | {float(seconds):.2f} | {float(memory):.1f} |", flush=True)


if __name__ == "__main__":
    main()
