"""An update of training: fairseq's trainer beside our engine, and each change of the engine alone.

    python -m benchmarks.training [--arch ofa_base] [--size 224] [--batch 4] [--rounds 5] [--frozen] [--sides a,b]

Prints a table: seconds of an update of stage-1 captioning on rows of the golden captions, the best and the median of
the rounds, the ratio to the first side, and the processor's seconds, which other work on the machine hardly changes.
All sides are in one process and take turns, so that other work on the machine hits all of them. "fairseq" is its stock
trainer around the same model, task and loss; --frozen leaves the embeddings as they are, as the recipe does.
"""

import ofa_module  # isort: skip  # noqa: F401

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from fairseq.trainer import Trainer

import train
from benchmarks.gpu.training import Setting
from ofa_module.engine.trainer import OFATrainer

FROZEN = ("--freeze-encoder-embedding", "--freeze-decoder-embedding")
SIDES: dict[str, tuple[str, ...]] = {
    "fairseq": (),
    "engine": (),
    "engine with fairseq's Adam": ("--use-old-adam",),
    "engine with a channels-last trunk": (),
    "engine --compile": ("--compile",),
    "engine --bf16": ("--bf16",),
    "engine --bf16 --compile": ("--bf16", "--compile"),
    "engine --memory-efficient-bf16": ("--bf16", "--memory-efficient-bf16"),
}


def make_update(setting: Setting, side: str, batch: int, frozen: bool) -> Callable[[], Any]:
    """An update of one side."""
    cfg = train.parse_args([flag for flag in setting.flags(*SIDES[side]) if frozen or flag not in FROZEN])
    torch.manual_seed(1)
    kind = Trainer if side == "fairseq" else OFATrainer
    trainer = kind(cfg, setting.task, setting.task.build_model(cfg.model), setting.task.build_criterion(cfg.criterion))
    if "channels-last" in side:
        trainer.get_model().encoder.embed_images.to(memory_format=torch.channels_last)
    trainer.begin_epoch(1)
    rows = setting.batch(batch)
    return lambda: trainer.train_step([rows])


def main() -> None:
    """Measures the sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ofa_base")
    parser.add_argument("--size", type=int, default=224, help="side of an image, in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="updates of each side, after one that does not count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frozen", action="store_true", help="freeze the embeddings")
    parser.add_argument("--sides", default="fairseq,engine", help=f"of: {', '.join(SIDES)}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setting = Setting(args.arch, args.size, "cpu")
    updates = {side: make_update(setting, side, args.batch, args.frozen) for side in args.sides.split(",")}
    seconds: dict[str, list[float]] = {side: [] for side in updates}
    processor: dict[str, list[float]] = {side: [] for side in updates}
    for _ in range(args.rounds + 1):
        for side, update in updates.items():
            start, used = time.perf_counter(), time.process_time()
            update()
            seconds[side].append(time.perf_counter() - start)
            processor[side].append(time.process_time() - used)
    figures = {side: (min(times[1:]), statistics.median(times[1:])) for side, times in seconds.items()}
    first = next(iter(figures.values()))
    print("| side | best, s | median, s | times as fast | processor, s |\n|---|---|---|---|---|")
    for side, (best, median) in figures.items():
        used = statistics.median(processor[side][1:])
        print(f"| {side} | {best:.2f} | {median:.2f} | {first[1] / median:.2f} | {used:.2f} |")


if __name__ == "__main__":
    main()
