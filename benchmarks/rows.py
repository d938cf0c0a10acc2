"""Rows per second of predict.py with one and two processes against a loop; shared images; texts sorted by length.

Run from the repository root: python -m benchmarks.rows [--rows N] [--passes N]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.items import open_items
from data.tasks import TASKS
from models.ofa import OFA, OFAConfig
from models.predictor import OFAPredictor
from utils.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoints" / "ofa_demo.pt"
BATCH = 16
QUESTIONS = 5  # about each image; VQA has 5.4
SIDE = 224
LABELS = ("entailment", "not_entailment")


def write_rows(folder: Path, rows: int) -> Path:
    """A caption test set of digit scenes."""
    sizes = {"--train": 1, "--val": 1, "--test": rows}
    flags = [str(part) for pair in sizes.items() for part in pair]
    command = [sys.executable, "-m", "data.demo", str(folder), "--size", "48", "--tasks", "caption", *flags]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "caption_data" / "caption_test.tsv"


def in_a_loop(predictor: OFAPredictor, path: Path) -> tuple[float, float]:
    """Rows per second, and the share of time for reading images, of batches read and captioned in turn."""
    start, reading, count, batch = time.perf_counter(), 0.0, 0, []
    items = open_items(str(path), ("id", "image"), TASKS["caption"].select(("id", "image")))
    for item in items.read():
        began = time.perf_counter()
        batch.append(predictor.prepare(item.values["image"]))
        reading += time.perf_counter() - began
        count += 1
        if len(batch) == BATCH or count == items.size:
            predictor.caption(batch)
            batch = []
    seconds = time.perf_counter() - start
    return count / seconds, reading / seconds


def with_processes(path: Path, folder: Path, processes: int) -> tuple[float, float]:
    """Rows per second, and the share of time in which the model waits, as `predict.py --json` tells."""
    output = folder / "out.jsonl"
    output.unlink(missing_ok=True)
    command = [sys.executable, "predict.py", "caption", str(path), f"--checkpoint={CHECKPOINT}", f"--output={output}"]
    command += [f"--processes={processes}", f"--batch-size={BATCH}", "--json", "--device=cpu"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    summary = json.loads(done.stdout)
    return summary["rows_per_second"], summary["waiting_share"]


def encodings(images: int, passes: int) -> dict[str, float]:
    """Seconds in which a base-size model encodes questions about images, each image once or for each question."""
    torch.manual_seed(0)
    model = OFA(OFAConfig.from_arch("ofa_base")).eval()
    pixels = torch.randn(images, 3, SIDE, SIDE)
    rows = torch.arange(images).repeat_interleave(QUESTIONS)
    tokens = torch.randint(4, 50_000, (len(rows), 12))
    own: dict[str, Any] = {"patch_images": pixels[rows]}
    shared = {"patch_images": pixels, "image_rows": rows}
    best = dict.fromkeys(("own", "shared"), float("inf"))
    with torch.inference_mode():
        for _ in range(passes):
            for name, inputs in (("own", own), ("shared", shared)):
                start = time.perf_counter()
                model.encode(tokens, **inputs)
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def write_texts(folder: Path, rows: int) -> tuple[Path, Path]:
    """Pairs of sentences of very different lengths, as RTE has them, and a random base-size model."""
    rng, words = random.Random(0), (ROOT / "README.md").read_text(encoding="utf-8").split()

    def text(mean: float, deviation: float, most: int) -> str:
        count = max(3, min(most, int(rng.lognormvariate(mean, deviation))))
        return " ".join(rng.choice(words) for _ in range(count))

    lines = (f"{text(3.6, 0.7, 120)}\t{text(2.2, 0.4, 25)}\t{rng.choice(LABELS)}\n" for _ in range(rows))
    (folder / "rte.tsv").write_text("".join(lines), encoding="utf-8")
    torch.manual_seed(0)
    config = OFAConfig.from_arch("ofa_base")
    cfg = {"model": {**asdict(config), "_name": "ofa_base"}, "task": {"_name": "rte", "patch_image_size": SIDE}}
    content = {"args": None, "cfg": cfg, "model": OFA(config).state_dict(), "extra_state": {}}
    save_checkpoint(content, folder / "rte.pt")
    return folder / "rte.tsv", folder / "rte.pt"


def evaluated(data: Path, checkpoint: Path, sorts: bool) -> float:
    """Seconds of a run of evaluate.py, its start among them."""
    code = "import evaluate, sys; from data.row_index import IndexedFile; "
    code += "" if sorts else "IndexedFile.sizes = lambda self: None; "
    command = [sys.executable, "-c", f"{code}evaluate.main(sys.argv[1:])", str(data), f"--path={checkpoint}"]
    command += ["--task=rte", "--bpe-dir=utils/BPE", "--batch-size=32", "--selected-cols=0,1,2", "--cpu"]
    start = time.perf_counter()
    subprocess.run([*command, f"--results-path={data.parent}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print three markdown tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.rows", description="Time predictions of many rows.")
    parser.add_argument("--rows", type=int, default=2000, help="digit scenes (default %(default)s)")
    parser.add_argument("--images", type=int, default=3, help="images asked about (default %(default)s)")
    parser.add_argument("--texts", type=int, default=600, help="pairs of sentences (default %(default)s)")
    parser.add_argument("--passes", type=int, default=2, help="passes over each (default %(default)s)")
    args = parser.parse_args()
    best: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        path = write_rows(Path(name) / "data", args.rows)
        predictor = OFAPredictor.load(CHECKPOINT, "cpu", batch_size=BATCH)
        for _ in range(args.passes):
            figures = {"predictor in a loop": in_a_loop(predictor, path)}
            figures |= {f"predict.py, {n} process{'es' * (n > 1)}": with_processes(path, Path(name), n) for n in (1, 2)}
            best = {key: max(figures[key], best.get(key, (0.0, 0.0))) for key in figures}
    print(f"{args.rows} digit scenes, ofa_demo, {os.cpu_count()} cores\n")
    print("| way | rows/s | against the loop | time waiting for images |\n| --- | --- | --- | --- |")
    base = best["predictor in a loop"][0]
    for key, (rate, waiting) in best.items():
        print(f"| {key} | {rate:.1f} | {rate / base:.2f} | {waiting:.1%} |")
    seconds = encodings(args.images, args.passes)
    print(f"\nEncoder, base size, {args.images} images of {SIDE} px, {QUESTIONS} questions each\n")
    print("| trunk | seconds | times faster |\n| --- | --- | --- |")
    for key, text in (("own", "for each question"), ("shared", "for each image")):
        print(f"| {text} | {seconds[key]:.2f} | {seconds['own'] / seconds[key]:.2f} |")
    with tempfile.TemporaryDirectory() as name:
        files = write_texts(Path(name), args.texts)
        runs = [(evaluated(*files, sorts=False), evaluated(*files, sorts=True)) for _ in range(args.passes)]
    plain, by_length = map(min, zip(*runs, strict=True))
    print(f"\nevaluate.py, base size, {args.texts} pairs of sentences in batches of 32, whole command\n")
    print("| batches | seconds | times faster |\n| --- | --- | --- |")
    for label, seconds_of in (("in the order of the file", plain), ("by length", by_length)):
        print(f"| {label} | {seconds_of:.1f} | {plain / seconds_of:.2f} |")


if __name__ == "__main__":
    main()
