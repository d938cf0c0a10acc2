"""Rows a second of `python -m data.validate` on captions with photographs, by number of reading processes.

Run from the repository root: python -m benchmarks.validate [--rows N]
"""

import argparse
import io
import os
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from benchmarks.loader import write_photographs
from data.validate import main as validate
from utils.options import positive

WORKERS = (0, 1, 2)


def rows_per_second(path: Path, rows: int, workers: int) -> float:
    """Rate of the whole program, without its imports; AssertionError if a row is bad."""
    start = time.perf_counter()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        code = validate(["caption", str(path), "--selected-cols=0,1,2", f"--workers={workers}"])
    assert code == 0
    return rows / (time.perf_counter() - start)


def main() -> None:
    """Print a markdown table."""
    parser = argparse.ArgumentParser("python -m benchmarks.validate", description="Time the check of a data file.")
    parser.add_argument("--rows", type=positive, default=20_000, help="rows of the file (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.tsv"
        write_photographs(path, args.rows)
        size = path.stat().st_size / 1e6
        print(f"{args.rows:,} rows with 640 x 480 JPEG images, {size:,.0f} MB; load before: {os.getloadavg()[0]:.1f}\n")
        print("| processes | rows/s |\n| --- | --- |")
        for workers in WORKERS:
            print(f"| {workers} | {rows_per_second(path, args.rows, workers):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
