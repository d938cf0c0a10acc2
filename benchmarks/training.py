"""An update of training: fairseq's trainer beside our engine, and each change of the engine alone.

    python -m benchmarks.training [--arch ofa_base] [--size 224] [--batch 4] [--rounds 5] [--frozen] [--sides a,b]

Prints a table: seconds of an update of stage-1 captioning on rows of the golden captions, the best and the median of
the rounds, the ratio to the first side, the processor's seconds, which other work on the machine hardly changes, and
the peak of resident memory. Sides take turns, so that other work on the machine hits all of them, each in a process of
its own, since what the C library does with freed memory depends on all that a process did before. "fairseq" is its
stock trainer around the same model, task and loss; --frozen leaves the embeddings as they are, as the recipe does.
"""

import ofa_module  # isort: skip  # noqa: F401

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.trainer import Trainer
from torch import Tensor

import train
from benchmarks.gpu.training import Setting
from models.ofa import attention
from ofa_module.engine.host_memory import keep_freed_memory
from ofa_module.engine.trainer import OFATrainer

FROZEN = ("--freeze-encoder-embedding", "--freeze-decoder-embedding")
SIDES: dict[str, tuple[str, ...]] = {
    "fairseq": (),
    "engine": (),
    "engine with freed memory returned": (),
    "engine with fairseq's Adam": ("--use-old-adam",),
    "engine with a channels-last trunk": (),
    "engine with the original's attention": (),
    "engine --checkpoint-activations": ("--checkpoint-activations",),
    "engine --checkpoint-trunk": ("--checkpoint-trunk",),
    "engine with both checkpoints": ("--checkpoint-activations", "--checkpoint-trunk"),
    "engine --compile": ("--compile",),
    "engine --bf16": ("--bf16",),
    "engine --bf16 --compile": ("--bf16", "--compile"),
    "engine --memory-efficient-bf16": ("--bf16", "--memory-efficient-bf16"),
}


def attend_per_sample(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0, scale: float = 1.0
) -> Tensor:
    """`attend` with biases, scores and weights of every sample, (B, H, T, S), as the original has them."""
    D, width = q.size(3), k.size(3)
    if width > D:
        q = torch.cat([q, F.pad(q.new_ones(*q.shape[:-1], 1), (0, width - D - 1))], dim=-1)
    scores = q @ k.transpose(2, 3) * scale
    if bias is not None:
        scores = scores + bias.expand(q.size(0), -1, -1, -1).clone()
    return (F.dropout(scores.softmax(3), dropout) @ v)[..., :D]


def make_update(setting: Setting, side: str, batch: int, frozen: bool) -> Callable[[], Any]:
    """An update of one side."""
    cfg = train.parse_args([flag for flag in setting.flags(*SIDES[side]) if frozen or flag not in FROZEN])
    torch.manual_seed(1)
    if side.endswith("attention"):
        attention.attend = attend_per_sample
    kind = Trainer if side == "fairseq" else OFATrainer
    trainer = kind(cfg, setting.task, setting.task.build_model(cfg.model), setting.task.build_criterion(cfg.criterion))
    if "channels-last" in side:
        trainer.get_model().encoder.embed_images.to(memory_format=torch.channels_last)
    trainer.begin_epoch(1)
    rows = setting.batch(batch)
    if side.startswith("engine") and not side.endswith("returned"):
        keep_freed_memory()  # as train.py does
    return lambda: trainer.train_step([rows])


def work(pipe: Connection, args: argparse.Namespace, side: str) -> None:
    """One side: an update for each message, answered with its seconds, the processor's, and the peak memory (GB)."""
    torch.set_num_threads(args.threads)
    update = make_update(Setting(args.arch, args.size, "cpu"), side, args.batch, args.frozen)
    while pipe.recv():
        start, used = time.perf_counter(), time.process_time()
        update()
        seconds = time.perf_counter() - start, time.process_time() - used
        pipe.send((*seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


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
    pipes: dict[str, Connection] = {}
    for side in args.sides.split(","):
        pipes[side], other = multiprocessing.Pipe()
        multiprocessing.get_context("spawn").Process(target=work, args=(other, args, side), daemon=True).start()
    measured: dict[str, list[tuple[float, float, float]]] = {side: [] for side in pipes}
    for _ in range(args.rounds + 1):
        for side, pipe in pipes.items():
            pipe.send(True)
            measured[side].append(pipe.recv())
    first = 0.0
    print("| side | best, s | median, s | times as fast | processor, s | peak, GB |\n|---|---|---|---|---|---|")
    for side, updates in measured.items():
        pipes[side].send(False)
        seconds, processor, memory = zip(*updates[1:], strict=True)
        median = statistics.median(seconds)
        first = first or median
        figures = f"{min(seconds):.2f} | {median:.2f} | {first / median:.2f} | {statistics.median(processor):.2f}"
        print(f"| {side} | {figures} | {max(memory):.1f} |")


if __name__ == "__main__":
    main()
