"""The memory of an update, counted before anything is trained: `--plan` prints it, `--auto-batch` chooses by it.

The update is the real one (model, loss, backward pass, optimizer) on tensors without numbers (`FakeTensorMode`), so
that it takes seconds and no memory. They are CPU tensors even for a GPU, whose backward pass asks for a CUDA context;
what a GPU computes in another way is put in its place (`like_gpu`).
"""

import copy
import logging
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from fairseq import tasks
from fairseq import utils as fairseq_utils
from omegaconf import DictConfig, open_dict
from torch import Tensor
from torch._subclasses import FakeTensorMode

from ofa_module.cli import on_gpu
from ofa_module.engine.example_rows import example_batch
from ofa_module.engine.optimizers import build_optimizer, scale_gradients
from ofa_module.engine.precision import Objective, Precision
from ofa_module.engine.storages import LiveStorages, kernel_bytes, like_gpu
from utils.distributed import gather_objects
from utils.errors import UserError

logger = logging.getLogger(__name__)
MARGIN = 0.9  # of the free memory is planned with: kernels need room of their own, and what is free is in pieces


@dataclass(frozen=True)
class Plan:
    """Bytes of an update. The total is the peak, not the sum: gradients are allocated while activations are freed."""

    parameters: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    total: int


class Planner:
    """Plans updates of one configuration at any batch size.

    Args:
        cfg: the configuration of `train.parse_args`. on_gpu: whether they are to run on one.

    Raises UserError where the options do not fit, and for losses that sample.
    """

    def __init__(self, cfg: DictConfig, on_gpu: bool) -> None:
        if "scst" in cfg.criterion._name:
            raise UserError(
                f"--criterion={cfg.criterion._name} cannot be planned, since what it samples depends on the weights: "
                "leave out --plan and --auto-batch."
            )
        self.cfg, self._on_gpu = _alone(cfg), on_gpu
        self.task: Any = tasks.setup_task(self.cfg.task)
        self._fakes, self._live = FakeTensorMode(), LiveStorages(fake=True)
        precision, first = Precision.of(self.cfg.common), self._example(1)
        with self._inside():
            torch.set_default_dtype(precision.weights)  # tensors without numbers cannot be converted in place
            try:
                self._model = self.task.build_model(self.cfg.model)
            finally:
                torch.set_default_dtype(torch.float32)
            criterion = self.task.build_criterion(self.cfg.criterion)
            self._objective = Objective(criterion, self._model, precision)
            self._parameters = [p for p in self._objective.parameters() if p.requires_grad]
            self._optimizer = build_optimizer(self.cfg.optimizer, self._parameters)
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(self._live.finish)
            self._weights = self._live.now
            self._update(self._without_numbers(first), many=False)
            self._state = self._live.now - self._weights
        self._ema = self._bytes_of_average()

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with self._fakes, self._live, like_gpu() if self._on_gpu else nullcontext():
            yield

    def _example(self, rows: int) -> Any:
        batch = example_batch(self.task, rows)
        for part in batch if isinstance(batch, list) else [batch]:
            if "target" in part:
                target, count = part["target"], int(part["target"].ne(self.task.vocab.pad).sum())
                self._live.counted |= {target.numel(): count, 2 * target.numel(): 2 * count}  # R-Drop doubles them
        return batch

    def _without_numbers(self, batch: Any) -> Any:
        weights = self._objective.precision.weights

        def fake(tensor: Tensor) -> Tensor:
            return torch.empty(tensor.shape, dtype=weights if tensor.dtype == torch.float32 else tensor.dtype)

        return fairseq_utils.apply_to_sample(fake, batch)

    def _update(self, batch: Any, many: bool) -> int:
        """As the trainer's; bytes of the gradients. Two batches stand for many: the second one finds gradients."""
        for _ in range(1 + many):
            self.task.train_step(batch, self._model, self._objective, self._optimizer, update_num=1)
        gradients = self._live.gradients
        scale_gradients(self._optimizer, self._parameters, 0.5)
        self.task.optimizer_step(self._optimizer, model=self._model, update_num=1)
        self._optimizer.zero_grad()
        return gradients

    def _bytes_of_average(self) -> int:
        """A copy of the model; of weights in half precision another one in float32 with --ema-fp32."""
        if not self.cfg.ema.store_ema:
            return 0
        half = sum(p.numel() for p in self._model.parameters() if p.dtype != torch.float32)
        return self._weights + (4 * half if self.cfg.ema.ema_fp32 else 0)

    def plan(self, rows: int, many: bool | None = None) -> Plan:
        """The update at a batch size; `many`: of several batches, by default as --update-freq says."""
        real = self._example(rows)
        with self._inside():
            batch = self._without_numbers(real)
            self._live.restart()
            gradients = self._update(batch, max(self.cfg.optimization.update_freq) > 1 if many is None else many)
        distributed = self.cfg.distributed_training
        if distributed.distributed_world_size > 1 and not distributed.gradient_as_bucket_view:
            copies = gradients  # which processes exchange
        else:
            copies = 0
        activations = self._live.activations - self._weights - self._state
        total = self._live.peak + self._ema + copies
        return Plan(self._weights, gradients + copies, self._state, self._ema, activations, total)


def _alone(cfg: DictConfig) -> DictConfig:
    """The configuration without what reads files or other processes, and does not change sizes."""
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.model.resnet_model_path, cfg.model.sync_bn = None, False
        if cfg.model.offload_activations:  # about the same: what checkpointing keeps is little
            cfg.model.offload_activations, cfg.model.checkpoint_activations = False, True
    return cfg


def _batch_size(cfg: DictConfig) -> int:
    rows = cfg.dataset.batch_size
    if rows is None:
        raise UserError("--batch-size is missing: --plan and --auto-batch count the memory of a batch.")
    return int(rows)


def print_plan(cfg: DictConfig) -> None:
    """`--plan`: prints the memory of an update; where there is no GPU, also what it would be on one."""
    _batch_size(cfg)
    if cfg.training.auto_batch:
        choose_batch(cfg)
    rows, precision = _batch_size(cfg), Precision.of(cfg.common)
    devices = {"GPU": True} if on_gpu(cfg) else {"CPU": False, "GPU": True}
    if torch.cuda.is_available() and cfg.common.cpu:
        del devices["GPU"]
    elif cfg.common.fp16:
        devices.pop("CPU", None)  # float16 needs a GPU
    plans = [Planner(cfg, on_gpu).plan(rows) for on_gpu in devices.values()]
    print(f"{cfg.model._name}, an update of {rows} rows, {cfg.task.patch_image_size} px, {precision}; MiB on a")
    print(" " * 12 + "".join(f"{name:>12}" for name in devices))
    for name in vars(plans[0]):
        print(f"{name:<12}" + "".join(f"{getattr(plan, name) / 2**20:>12,.1f}" for plan in plans))
    print("The total is the peak, not the sum: most gradients are allocated after most activations are freed.")


def choose_batch(cfg: DictConfig) -> None:
    """`--auto-batch`: lowers --batch-size to its largest divisor that fits into the free memory of every process.

    --update-freq grows as the batch shrinks: an update has as many rows as before. Changes `cfg`.

    Raises UserError if one row does not fit.
    """
    wanted = _batch_size(cfg)
    free, planner = min(gather_objects(free_memory(cfg))), Planner(cfg, on_gpu(cfg))
    smaller = [rows for rows in range(1, wanted) if wanted % rows == 0]

    @cache
    def needed(rows: int) -> int:
        return planner.plan(rows, many=True if rows < wanted else None).total

    def too_much(rows: int) -> bool:
        return needed(rows) > MARGIN * free

    # Memory grows with the batch, but a single batch finds no gradients and may need less than smaller ones.
    fitting = smaller[: bisect_left(smaller, True, key=too_much)] if too_much(wanted) else [wanted]
    if not fitting:
        raise UserError(
            f"An update of one row takes {_size(needed(1))} and {_size(free)} are free: choose a smaller --arch or "
            "--patch-image-size, or pass --bf16 or --checkpoint-activations."
        )
    rows = fitting[-1]
    with open_dict(cfg):
        if cfg.dataset.batch_size_valid == wanted:
            cfg.dataset.batch_size_valid = rows
        cfg.dataset.batch_size = rows
        cfg.optimization.update_freq = [freq * wanted // rows for freq in cfg.optimization.update_freq]
    freq = ",".join(map(str, cfg.optimization.update_freq))
    takes = [f"{_size(needed(count))} with {count}" for count in dict.fromkeys((wanted, rows))]
    logger.info(
        "--auto-batch: --batch-size=%d --update-freq=%s, since an update takes %s rows and %s are free.",
        rows, freq, ", ".join(takes), _size(free),
    )  # fmt: skip


def _size(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


def free_memory(cfg: DictConfig) -> int:
    """Bytes that this process may take: of its GPU, or its share of the machine's."""
    if on_gpu(cfg):
        return int(torch.cuda.mem_get_info()[0])
    return kernel_bytes("/proc/meminfo", "MemAvailable") // max(1, cfg.distributed_training.distributed_world_size)
