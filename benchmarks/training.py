"""An update of training: fairseq's trainer beside our engine, and each change of the engine alone.

    python -m benchmarks.training [--arch ofa_base] [--size 224] [--batch 4] [--seconds 20] [--only engine]

Prints a table: seconds and peak memory of an update of stage-1 captioning on rows of the golden captions. Each side
runs in a process of its own, one after the other: nothing else may run beside them. "fairseq" is its stock
trainer around the same network, task and loss; "frozen" leaves the embeddings as they are, as the recipe does.
"""

import ofa_module  # isort: skip  # noqa: F401

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairseq.trainer import Trainer

import train
from benchmarks.candidates import memory
from benchmarks.gpu.training import Setting
from ofa_module.engine.trainer import OFATrainer

FROZEN = ("--freeze-encoder-embedding", "--freeze-decoder-embedding")
SIDES: dict[str, tuple[str, ...]] = {
    "fairseq": (),
    "engine": (),
    "engine, fairseq's Adam": ("--use-old-adam",),
    "engine, contiguous trunk": (),
    "fairseq, frozen": FROZEN,
    "engine, frozen": FROZEN,
    "fairseq, --bf16": ("--bf16",),
    "engine, --bf16": ("--bf16",),
    "engine, --bf16, frozen": ("--bf16", *FROZEN),
    "engine, --memory-efficient-bf16": ("--bf16", "--memory-efficient-bf16"),
}


def make_update(side: str, args: argparse.Namespace) -> Callable[[], Any]:
    """An update of one side."""
    setting = Setting(args.arch, args.size, "cpu")
    argv = [flag for flag in setting.flags(*SIDES[side]) if flag not in FROZEN or flag in SIDES[side]]
    cfg = train.parse_args(argv)
    torch.manual_seed(1)
    kind = Trainer if side.startswith("fairseq") else OFATrainer
    trainer = kind(cfg, setting.task, setting.task.build_model(cfg.model), setting.task.build_criterion(cfg.criterion))
    if "contiguous" in side:
        trainer.get_model().encoder.embed_images.to(memory_format=torch.contiguous_format)
    trainer.begin_epoch(1)
    batch = setting.batch(args.batch)
    return lambda: trainer.train_step([batch])


def serve(side: str, args: argparse.Namespace) -> None:
    """Prints the seconds of an update for each line that is read, and its peak memory in GB."""
    update = make_update(side, args)
    update()
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is used now (Linux)
        start = time.perf_counter()
        update()
        print(json.dumps([time.perf_counter() - start, memory("VmHWM") / 2**30]), flush=True)


def main() -> None:
    """Measures the sides in turns and prints their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ofa_base")
    parser.add_argument("--size", type=int, default=224, help="side of an image, in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20, help="of updates of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="sides whose names hold this")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.side:
        return serve(args.side, args)
    print("| side | seconds an update | peak GB | updates |\n|---|---|---|---|")
    for side in (name for name in SIDES if args.only in name):
        command = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], f"--side={side}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin and process.stdout
            figures: list[list[float]] = []
            while len(figures) < 3 or sum(seconds for seconds, _ in figures) < args.seconds:
                process.stdin.write("\n")
                process.stdin.flush()
                line = process.stdout.readline()
                while line and not line.startswith("["):
                    line = process.stdout.readline()
                if not line:
                    sys.exit(f"{side} failed.")
                figures.append(json.loads(line))
            process.stdin.close()
        seconds, peak = (statistics.median(values) for values in zip(*figures, strict=True))
        print(f"| {side} | {seconds:.2f} | {peak:.1f} | {len(figures)} |", flush=True)


if __name__ == "__main__":
    main()
