"""Loss curves of 300 demo updates: fairseq's trainer and our engine, in float32 and in half precision, on one plot.

    python -m benchmarks.loss_curves [--updates 300] [--batch 16] [--output curves.png]

Every side starts from the same random weights and learns from the same batches of digit scenes in the same order, with
the same seeds for dropout. Prints the mean loss of each fifth of the run, how far a side is from the first one, and
updates a second, without data.
"""

import ofa_module  # isort: skip  # noqa: F401

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from fairseq import tasks
from fairseq.trainer import Trainer
from matplotlib.figure import Figure

import train
from digits.__main__ import main as build_demo
from ofa_module.engine.host_memory import keep_freed_memory
from ofa_module.engine.trainer import OFATrainer

ROOT = Path(__file__).parents[1]
SIDES: dict[str, tuple[str, ...]] = {
    "fairseq's trainer, float32": (),
    "engine, float32": (),
    "engine, --bf16 (autocast)": ("--bf16",),
    "engine, --bf16 --memory-efficient-bf16": ("--bf16", "--memory-efficient-bf16"),
}


def flags(data: Path, args: argparse.Namespace, *more: str) -> list[str]:
    """The quickstart's command line, from random weights."""
    return [
        f"{data}/caption_stage1_train.tsv,{data}/caption_val.tsv", "--arch=ofa_demo", "--task=caption",
        "--selected-cols=0,4,2", "--criterion=adjust_label_smoothed_cross_entropy", "--label-smoothing=0.0",
        "--patch-image-size=48", f"--bpe-dir={ROOT}/digits/BPE", "--code-dict-size=0", "--num-bins=0",
        "--optimizer=adam", "--adam-betas=(0.9,0.999)", "--lr=1e-3", "--lr-scheduler=polynomial_decay",
        "--warmup-updates=30", f"--total-num-update={args.updates}", "--clip-norm=1.0", "--dropout=0.1",
        f"--batch-size={args.batch}", "--num-workers=0", "--scale-attn", "--scale-fc", "--scale-heads",
        "--disable-entangle", f"--save-dir={data}/save", "--cpu", *more,
    ]  # fmt: skip


def losses(side: str, argv: list[str], batches: list[Any]) -> tuple[list[float], float]:
    """The loss of each update of a side, per token, and its updates a second; fairseq's must come first."""
    cfg = train.parse_args(argv)
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    kind = Trainer if side.startswith("fairseq") else OFATrainer
    trainer = kind(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    trainer.begin_epoch(1)
    if kind is OFATrainer:
        keep_freed_memory()  # as train.py does, until the process ends
    start = time.perf_counter()
    logged = [trainer.train_step([batch]) for batch in batches]
    seconds = time.perf_counter() - start
    return [float(values["loss"]) for values in logged], len(batches) / seconds


def plot(curves: dict[str, list[float]], path: Path) -> None:
    """Means of ten updates, since single batches differ more than sides do."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for (side, values), style in zip(curves.items(), ("-", "--", "-.", ":"), strict=True):
        means = [statistics.fmean(values[i : i + 10]) for i in range(0, len(values), 10)]
        axes.plot(range(10, 10 * len(means) + 1, 10), means, style, label=side)
    axes.set(xlabel="update", ylabel="loss, mean of 10 updates", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Trains the sides one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path("loss_curves.png"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = args.updates * args.batch
        build_demo([folder, "--tasks=caption", f"--train={rows}", "--val=2", "--test=2", "--size=48"])
        data = Path(folder) / "caption_data"
        task = tasks.setup_task(train.parse_args(flags(data, args)).task)
        task.load_dataset("train")
        iterator = task.get_batch_iterator(task.dataset("train"), max_sentences=args.batch, seed=1)
        batches = list(islice(iterator.next_epoch_itr(), args.updates))
        sides = {side: losses(side, flags(data, args, *more), batches) for side, more in SIDES.items()}
    curves = {side: values for side, (values, _) in sides.items()}
    plot(curves, args.output)
    fifth, first = len(batches) // 5, next(iter(curves.values()))
    print(
        "| side | "
        + " | ".join(f"to {fifth * (n + 1)}" for n in range(5))
        + " | furthest from the first side | updates/s |"
    )
    print("|---" * 8 + "|")
    for side, values in curves.items():
        means = [statistics.fmean(values[fifth * n : fifth * (n + 1)]) for n in range(5)]
        furthest = max(abs(a - b) for a, b in zip(values, first, strict=True))
        print(
            f"| {side} | " + " | ".join(f"{mean:.4f}" for mean in means) + f" | {furthest:.4f} | {sides[side][1]:.1f} |"
        )


if __name__ == "__main__":
    main()
