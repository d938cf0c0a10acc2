"""Caption training samples per second through torch's DataLoader, by number of workers.

Run from the repository root: python -m benchmarks.loader [--rows N] [--batch-size N]
"""

import argparse
import base64
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader

from data.base import DataConfig
from data.caption import CaptionDataset
from data.text import Vocabulary
from data.tsv import TsvFile
from digits.__main__ import main as write_demo

WORKERS = (0, 1, 2)
BPE_DIR = Path(__file__).parents[1] / "utils" / "BPE"
DEMO_BPE_DIR = Path(__file__).parents[1] / "digits" / "BPE"


def write_photographs(path: Path, rows: int, size: tuple[int, int] = (640, 480)) -> None:
    """Write rows of id, image and caption: random parts of two photographs as JPEG files."""
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            photograph = photographs[number % len(photographs)]
            left, top = int(rng.integers(160)), int(rng.integers(100))
            part = photograph.resize(size, box=(left, top, left + 480, top + 320))
            jpeg = io.BytesIO()
            part.save(jpeg, "JPEG", quality=90)
            image = base64.b64encode(jpeg.getvalue()).decode("ascii")
            file.write(f"{number}\t{image}\ta temple under a blue sky and a flower in the sun\n")


def samples_per_second(dataset: CaptionDataset, workers: int, batch_size: int) -> float:
    """Rate of the second pass; the first one starts the workers and fills the page cache."""
    loader = DataLoader(
        dataset, batch_size, num_workers=workers, collate_fn=dataset.collater, persistent_workers=workers > 0
    )
    for _ in range(2):
        start = time.perf_counter()
        seen = sum(batch["nsentences"] for batch in loader)
    return seen / (time.perf_counter() - start)


def main() -> None:
    """Print a markdown table."""
    parser = argparse.ArgumentParser("python -m benchmarks.loader", description="Time the loading of caption samples.")
    parser.add_argument("--rows", type=int, default=600, help="rows to load (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples in a batch (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / "photographs.tsv", args.rows)
        write_demo([name, "--tasks", "caption", "--train", str(args.rows), "--val", "1", "--test", "1"])
        write_photographs(folder / "large.tsv", max(args.rows // 10, args.batch_size), (4000, 3000))
        photographs = {"640 x 480": folder / "photographs.tsv", "4,000 x 3,000": folder / "large.tsv"}
        settings = {
            f"480 px from {size} JPEG{flag}": (path, "0,1,2", 480, BPE_DIR, bool(flag))
            for size, path in photographs.items()
            for flag in ("", ", --fast-decode")
        }
        demo = folder / "caption_data" / "caption_stage1_train.tsv"
        settings["demo, 96 px"] = demo, "0,4,2", 96, DEMO_BPE_DIR, False
        print("| setting | workers | samples/s | against 0 workers |\n| --- | --- | --- | --- |")
        for setting, (path, columns, size, bpe_dir, fast) in settings.items():
            config = DataConfig(patch_image_size=size, max_tgt_length=20, fast_decode=fast)
            dataset = CaptionDataset(TsvFile(path, columns), Vocabulary.load(bpe_dir), config, "train")
            rates = [samples_per_second(dataset, workers, args.batch_size) for workers in WORKERS]
            for workers, rate in zip(WORKERS, rates, strict=True):
                print(f"| {setting} | {workers} | {rate:.0f} | {rate / rates[0]:.2f} |")


if __name__ == "__main__":
    main()
