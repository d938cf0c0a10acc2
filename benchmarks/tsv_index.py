"""How fast the row index of a TSV file is built, against plain reading of the same file, and a second start.

    python benchmarks/tsv_index.py --size-gb 2

Writes a file of random base64-like rows to a temporary folder, prints a Markdown table, removes the file.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from data.tsv import TsvFile  # noqa: E402

READ_SIZE = 1 << 20
WRITE_SIZE = 1 << 24


def write_tsv(path: Path, size: int, row_size: int) -> None:
    """About `size` bytes of rows "number <tab> base64", each `row_size` bytes long on average."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8)
    noise = letters[rng.integers(0, 64, WRITE_SIZE)].tobytes()
    row, written = 0, 0
    with open(path, "wb") as file:
        while written < size:
            length = int(rng.integers(row_size // 2, row_size * 3 // 2))
            first = int(rng.integers(0, WRITE_SIZE - length))
            written += file.write(b"%d\t%s\n" % (row, noise[first : first + length]))
            row += 1
        file.flush()
        os.fsync(file.fileno())


def read_plainly(path: Path) -> None:
    """Read a file from start to end and do nothing with it."""
    buffer = bytearray(READ_SIZE)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def build_index(path: Path) -> None:
    """Open a file that has no index."""
    Path(f"{path}.ofaidx").unlink(missing_ok=True)
    TsvFile(path)


def forget_pages(path: Path) -> None:
    """Drop a file from the page cache, so that the next read comes from the disk."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(action: Callable[[Path], object], path: Path, cold: bool, repeats: int) -> float:
    """Best time of an action over some runs."""
    times = []
    for _ in range(repeats):
        if cold:
            forget_pages(path)
        start = time.perf_counter()
        action(path)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Index rate of a TSV file against plain reading.")
    parser.add_argument("--size-gb", type=float, default=2.0, help="size of the file (default %(default)s)")
    parser.add_argument("--row-kb", type=float, default=30.0, help="mean size of a row (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, the best counts (default %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.tsv"
        write_tsv(path, int(args.size_gb * 1e9), int(args.row_kb * 1e3))
        size = path.stat().st_size / 1e9
        lines = []
        for cold in (True, False):
            plain, index = (seconds(action, path, cold, args.repeats) for action in (read_plainly, build_index))
            state = "dropped" if cold else "warm"
            rates = f"{size / plain:.2f} | {size / index:.2f} | {plain / index:.0%}"
            lines.append(f"| {state} | {rates} |")
        again = seconds(TsvFile, path, False, args.repeats)
        print(f"{size:.2f} GB, {len(TsvFile(path)):,} rows; best of {args.repeats}\n")
        print("| page cache | plain read, GB/s | index build, GB/s | ratio |\n|---|---|---|---|")
        print("\n".join(lines))
        print(f"\nSecond start, index reused: {again * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
