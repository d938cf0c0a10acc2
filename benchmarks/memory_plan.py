"""The plan of an update's memory (`train.py --plan`) beside what updates took.

    python -m benchmarks.memory_plan [--recorded] [--settings demo,tiny]

Prints a table of updates on this machine's CPU: the planned total, the largest sum of live tensors of a real update
of the trainer, and how much the resident memory of a fresh process grew (its kernels' own memory included). The batch
is the plan's, with numbers. --recorded prints the plan of the updates whose peak on a GPU is in
results/gpu_h100_2026-11-27.md: those were first updates, before the optimizer has a state.
"""

import ofa_module  # isort: skip  # noqa: F401

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from fairseq import tasks
from omegaconf import DictConfig

import train
from benchmarks.gpu.measure import begin_table
from benchmarks.gpu.training import flags
from benchmarks.training import FROZEN
from ofa_module.engine.example_rows import example_batch
from ofa_module.engine.plan import Planner
from ofa_module.engine.storages import LiveStorages, kernel_bytes
from ofa_module.engine.trainer import OFATrainer

STATUS = "/proc/self/status"
# Size, side of an image, rows, further flags; the embeddings are trained unless FROZEN is among them.
SETTINGS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("ofa_demo", 64, 16, ()),
    ("ofa_demo", 64, 16, ("--store-ema", "--update-freq=2")),
    ("ofa_tiny", 224, 4, ()),
    ("ofa_tiny", 384, 4, ("--checkpoint-activations",)),
    ("ofa_tiny", 224, 8, ("--bf16", *FROZEN)),
    ("ofa_base", 224, 4, ()),
    ("ofa_base", 224, 4, ("--checkpoint-activations", "--freeze-resnet", *FROZEN)),
    ("ofa_base", 224, 4, ("--checkpoint-activations", "--checkpoint-trunk")),
    ("ofa_base", 128, 2, ("--bf16", "--memory-efficient-bf16")),
)
# Size, rows, precision, peak in GB on an H100 of the loop "plain" at 480 pixels.
RECORDED = (
    ("ofa_base", 8, "", 9.29),
    ("ofa_base", 8, "--bf16", 6.64),
    ("ofa_base", 32, "--bf16", 22.1),
    ("ofa_base", 64, "--bf16", 42.6),
    ("ofa_large", 8, "--bf16", 14.1),
    ("ofa_large", 32, "--bf16", 46.3),
)


def configuration(arch: str, side: int, rows: int, more: tuple[str, ...]) -> DictConfig:
    """Stage-1 captioning."""
    given = [flag for flag in flags(arch, side, "cpu", *more, f"--batch-size={rows}") if flag not in FROZEN]
    return train.parse_args([*given, *(flag for flag in more if flag in FROZEN)])


def make_update(cfg: DictConfig) -> Callable[[], Any]:
    """The trainer's update of the planned batch, one of whose texts is padded."""
    task: Any = tasks.setup_task(cfg.task)
    trainer = OFATrainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    trainer.begin_epoch(1)
    batch = example_batch(task, cfg.dataset.batch_size)
    batch["net_input"]["src_tokens"][-1, -1] = task.vocab.pad
    return lambda: trainer.train_step([batch] * cfg.optimization.update_freq[0])


def planned(*setting: Any) -> int:
    """Bytes of the plan."""
    cfg = configuration(*setting)
    return Planner(cfg, on_gpu=False).plan(cfg.dataset.batch_size).total


def counted(*setting: Any) -> int:
    """Largest sum of live tensors during the second update."""
    with LiveStorages(fake=False) as live:
        update = make_update(configuration(*setting))
        update()
        live.restart()
        update()
    return live.peak


def resident(*setting: Any) -> int:
    """Growth of the resident memory by two updates; one of the smallest size has loaded the code before."""
    torch.set_num_threads(1)
    make_update(configuration("ofa_demo", 64, 2, setting[3]))()
    cfg, before = configuration(*setting), kernel_bytes(STATUS, "VmRSS")
    update = make_update(cfg)
    update()
    update()
    return kernel_bytes(STATUS, "VmHWM") - before


def in_fresh_process(call: Callable[..., int], *args: Any) -> int:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *args).result()


def print_recorded() -> None:
    """The plan of what was measured on a GPU."""
    begin_table("model", "rows", "flags", "plan without optimizer, GB", "peak on an H100, GB", "plan / peak")
    planners: dict[tuple[str, str], Planner] = {}
    for arch, rows, precision, peak in RECORDED:
        if (arch, precision) not in planners:
            more = (*([precision] if precision else []), *FROZEN)
            planners[arch, precision] = Planner(configuration(arch, 480, rows, more), on_gpu=True)
        plan = planners[arch, precision].plan(rows)
        total = (plan.total - plan.optimizer) / 1e9
        print(f"| {arch} | {rows} | {precision} | {total:.2f} | {peak} | {total / peak:.3f} |", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="demo,tiny,base", help="sizes, of: demo, tiny, base")
    parser.add_argument("--recorded", action="store_true", help="the plan of updates on a GPU instead")
    args = parser.parse_args()
    if args.recorded:
        return print_recorded()
    columns = ("model", "image", "rows", "flags", "plan, MiB", "live tensors, MiB", "plan / live", "resident, MiB")
    begin_table(*columns, "plan / resident")
    for setting in SETTINGS:
        arch, side, rows, more = setting
        if arch.removeprefix("ofa_") not in args.settings.split(","):
            continue
        plan, live, grown = (in_fresh_process(call, *setting) / 2**20 for call in (planned, counted, resident))
        ratios = f"{plan:,.0f} | {live:,.0f} | {plan / live:.3f} | {grown:,.0f} | {plan / grown:.2f}"
        print(f"| {arch} | {side} px | {rows} | {' '.join(more)} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
