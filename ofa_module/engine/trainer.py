"""One update and one validation step of a run, over everything that they change."""

import inspect
import logging
import math
import os
import random
import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from fairseq import utils as fairseq_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.collate import damaged_images, without_skipped
from models.ofa.compiling import compile_layers
from ofa_module.cli import on_gpu
from ofa_module.engine.optimizers import Average, build_optimizer, scale_gradients
from ofa_module.engine.precision import Objective, Precision
from ofa_module.engine.schedule import Schedule
from ofa_module.engine.state import restore, state_of
from ofa_module.nonfinite import NonFiniteGuard, NonFiniteUpdate
from tasks.epochs import EpochBatches
from utils.distributed import gather_objects, read_together
from utils.errors import UserError

DAMAGED_SHOWN = 10  # images that are named in the log; all are counted
logger = logging.getLogger(__name__)


class OFATrainer:
    """Updates a model; validates, saves and restores it. Its interface is that of fairseq's trainer.

    Args:
        cfg: the configuration of `train.parse_args`. model: not yet on the device.

    Attributes:
        skipped_rows, damaged_images: counts of this process.
    """

    skipped_rows = 0
    damaged_images = 0

    def __init__(self, cfg: DictConfig, task: Any, model: nn.Module, criterion: nn.Module) -> None:
        self.cfg, self.task = cfg, task
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu(cfg) else torch.device("cpu")
        self.precision = Precision.of(cfg.common)
        self._model = model.to(self.device, self.precision.weights)
        if cfg.training.compile:
            compile_layers(self._model)
        self._criterion = criterion.to(self.device)
        self._objective = Objective(self._criterion, self._model, self.precision)
        self._parallel: nn.Module | None = None
        self._ema: Average | None = None
        self._dummy: Any = None
        self.history: list[dict[str, Any]] = []
        self.clock = Clock()
        self._updates = 0
        self._build_optimizer()
        limit = cfg.training.max_nonfinite_updates
        self._guard = NonFiniteGuard(self._criterion, model, cfg.checkpoint.save_dir, limit)
        self.card = task.card().plain()
        metrics.log_start_time("wall", priority=790, round=0)

    def _build_optimizer(self) -> None:
        common, optimization = self.cfg.common, self.cfg.optimization
        self.parameters = [p for p in self._objective.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.cfg.optimizer, self.parameters)
        self.schedule = Schedule(self.cfg, self.optimizer)
        self.scaler: DynamicLossScaler | None = None
        if self.precision.scaled:
            window = common.fp16_scale_window
            if window is None:
                window = int(2**14 / self.data_parallel_world_size / optimization.update_freq[0])
            self.scaler = DynamicLossScaler(
                init_scale=common.fp16_init_scale, scale_window=window, tolerance=common.fp16_scale_tolerance,
                threshold=common.threshold_loss_scale, min_loss_scale=common.min_loss_scale,
            )  # fmt: skip

    # ---- what it holds

    @property
    def data_parallel_world_size(self) -> int:
        """Number of processes."""
        alone = self.cfg.distributed_training.distributed_world_size == 1
        return 1 if alone else int(distributed_utils.get_data_parallel_world_size())

    @property
    def data_parallel_rank(self) -> int:
        """Number of this process, from 0."""
        return 0 if self.data_parallel_world_size == 1 else int(distributed_utils.get_data_parallel_rank())

    @property
    def is_data_parallel_master(self) -> bool:
        """Whether this process writes files and logs."""
        return self.data_parallel_rank == 0

    def get_model(self) -> Any:
        """The model itself."""
        return self._model

    def get_criterion(self) -> Any:
        """The loss itself."""
        return self._criterion

    def get_num_updates(self) -> int:
        """Updates done."""
        return self._updates

    def set_num_updates(self, updates: int) -> None:
        """Says how many are done, which the learning rate follows."""
        self._updates = updates
        self.schedule.follow(updates)
        metrics.log_scalar("num_updates", updates, weight=0, priority=200)

    def get_lr(self) -> float:
        """The present learning rate."""
        return float(self.optimizer.get_lr())

    @property
    def ema(self) -> Average | None:
        """The moving average, which begins with the weights of the first call; None without --store-ema."""
        if self._ema is None and self.cfg.ema.store_ema:
            self._ema = Average(self._model, self.cfg.ema)
        return self._ema

    def _averaged(self) -> dict[str, nn.Module]:
        """The averaged model, as a keyword of the task's steps, if the task wants it."""
        wanted = self.cfg.ema.store_ema and getattr(self.task, "uses_ema", False)
        return {"ema_model": self.ema.get_model()} if wanted and self.ema is not None else {}

    def cumulative_training_time(self) -> float:
        """Seconds of this run and those it goes on from, averaged over processes."""
        return self.clock.own() if self.clock.averaged is None else self.clock.averaged

    # ---- data

    def get_train_iterator(self, epoch: int, load_dataset: bool = True) -> EpochBatches:
        """Batches of an epoch; epochs up to --curriculum read their rows in file order."""
        dataset, common = self.cfg.dataset, self.cfg.common
        self.task.shuffle_rows = not self.task.cfg.no_shuffle_rows and epoch > dataset.curriculum
        if load_dataset:
            self.task.load_dataset(dataset.train_subset, epoch=epoch, combine=True)
        seed = common.seed + (epoch if dataset.update_ordered_indices_seed else 0)
        iterator = self._batches(dataset.train_subset, dataset.batch_size, seed, epoch)
        iterator.update_freqs = list(self.cfg.optimization.update_freq)
        self.schedule.next_epoch(iterator)
        return iterator

    def get_valid_iterator(self, subset: str) -> EpochBatches:
        """Batches of a validation split, always the same."""
        return self._batches(subset, self.cfg.dataset.batch_size_valid, self.cfg.common.seed, epoch=1)

    def _batches(self, subset: str, batch_size: int | None, seed: int, epoch: int) -> Any:
        iterator = self.task.get_batch_iterator(
            dataset=self.task.dataset(subset), max_sentences=batch_size, seed=seed, epoch=epoch,
            num_shards=self.data_parallel_world_size, shard_id=self.data_parallel_rank,
            num_workers=self.cfg.dataset.num_workers, data_buffer_size=self.cfg.dataset.data_buffer_size,
        )  # fmt: skip
        self.reset_dummy_batch(iterator.first_batch)
        return iterator

    def reset_dummy_batch(self, batch: dict[str, Any]) -> None:
        """The batch that processes without data run; it must hold a good row."""
        good, messages = without_skipped(batch)
        if not good:
            raise UserError(f"No row of the batch can be read: {messages[0]}.")
        self._dummy = good

    def _prepare_sample(self, sample: Any) -> tuple[Any, bool]:
        """A batch on the device, and whether it is a stand-in for one without good rows, which are reported."""
        if sample:
            sample, messages = without_skipped(sample)
            for message in messages:
                logger.warning("skipped %s.", message)
            if messages:
                self.skipped_rows += len(messages)
                metrics.log_scalar("skipped_rows", self.skipped_rows, weight=0)
            if damaged := damaged_images(sample):
                for message in damaged[: max(0, DAMAGED_SHOWN - self.damaged_images)]:
                    logger.warning("%s", message)
                self.damaged_images += len(damaged)
                metrics.log_scalar("damaged_images", self.damaged_images, weight=0)
        if not sample:
            return self._on_device(self._dummy), True
        return self._on_device(sample), False

    def _on_device(self, sample: Any) -> Any:
        def move(tensor: Tensor) -> Tensor:
            dtype = self.precision.weights if tensor.dtype == torch.float32 else None
            return tensor.to(self.device, dtype, non_blocking=True)

        return fairseq_utils.apply_to_sample(move, sample)

    # ---- steps

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins."""
        self.schedule.begin_epoch(epoch, self._updates)
        self.task.begin_epoch(epoch, self._model)

    def end_epoch(self, epoch: int, score: float | None = None) -> float:
        """An epoch ends with a score of validation; the learning rate that comes next."""
        return self.schedule.end_epoch(epoch, score, self._updates)

    @property
    def objective(self) -> Any:
        """Model and loss, over all processes if there are several."""
        if self.data_parallel_world_size == 1:
            return self._objective
        if self._parallel is None:
            given = self.cfg.distributed_training
            known = inspect.signature(DistributedDataParallel.__init__).parameters
            sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # PyTorch < 2.14
            parallel = DistributedDataParallel(
                self._objective, process_group=distributed_utils.get_data_parallel_group(),
                bucket_cap_mb=given.bucket_cap_mb, gradient_as_bucket_view=given.gradient_as_bucket_view,
                find_unused_parameters=given.find_unused_parameters or "legacy" in given.ddp_backend
                or given.ddp_backend == "no_c10d",
                **{sync: given.broadcast_buffers},
            )  # fmt: skip
            if given.ddp_comm_hook == "fp16":
                from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

                parallel.register_comm_hook(distributed_utils.get_data_parallel_group(), fp16_compress_hook)
            self._parallel = parallel
        return self._parallel

    @metrics.aggregate("train")
    def train_step(self, samples: Sequence[Any]) -> dict[str, float] | None:
        """One update from micro-batches: its figures; None if there was none and all is as it was before."""
        metrics.log_start_time("train_wall", priority=800, round=0)
        self._set_seed()
        self._guard.begin()
        try:
            logged = self._update(samples)
        except NonFiniteUpdate as found:
            self._guard.skip(found.args[0], samples, self._updates)
            logged = None
        except OverflowError as lowered:
            self._guard.undo()
            logger.info("The gradient is too large for the loss scale: update skipped, %s.", lowered)
            logged = None
        self.optimizer.zero_grad()
        if self.scaler is not None:
            metrics.log_scalar("loss_scale", self.scaler.loss_scale, priority=700, round=4, weight=0)
        metrics.log_stop_time("train_wall")
        return logged

    def _set_seed(self) -> None:
        """Of dropout and drawn patches: by update, so that a resumed run draws the same."""
        fairseq_utils.set_torch_seed(self.cfg.common.seed + self._updates)
        seed = f"{self.cfg.common.seed} {self._updates} {self.data_parallel_rank}"
        self._criterion.patch_generator = random.Random(seed)  # type: ignore[assignment]

    def _update(self, samples: Sequence[Any]) -> dict[str, float]:
        self._model.train()
        self._criterion.train()
        self._objective.scale = 1.0 if self.scaler is None else self.scaler.loss_scale
        outputs, size = self._backward(samples)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        total_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, dtype=torch.float32)))
        sums = (size, self._guard.bad_losses(), self.clock.own())
        outputs, (size, bad, total_time), (norm,) = self._add_up(outputs, sums, (total_norm,))
        self.clock.averaged = total_time / self.data_parallel_world_size
        factor = self.data_parallel_world_size / (size or 1) / self._objective.scale
        norm *= factor
        if bad:
            raise NonFiniteUpdate("loss")
        if self.scaler is not None:
            self._check_scale(self.scaler, norm)
        elif not math.isfinite(norm):
            raise NonFiniteUpdate("gradient")
        clip = self.cfg.optimization.clip_norm
        clipped = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
        scale_gradients(self.optimizer, self.parameters, factor * clipped)
        self.task.optimizer_step(self.optimizer, model=self._model, update_num=self._updates)
        if self.scaler is not None:
            self.scaler.update()
        self.set_num_updates(self._updates + 1)
        self._guard.done()
        if self.ema is not None:
            self.ema.step(self._model, self._updates)
            metrics.log_scalar("ema_decay", self.ema.get_decay(), priority=10000, round=5, weight=0)
        self._log_update(norm, sum(output.get("nsentences", 0) for output in outputs))
        return self._reduce(outputs, size)

    @staticmethod
    def _check_scale(scaler: DynamicLossScaler, norm: float) -> None:
        try:
            scaler.check_overflow(norm)
        except FloatingPointError as error:
            raise UserError(
                f"The loss scale has reached --min-loss-scale={scaler.min_loss_scale}, so the loss is probably "
                "diverging: lower --lr, set --clip-norm or train with --bf16."
            ) from error

    def _backward(self, samples: Sequence[Any]) -> tuple[list[dict[str, Any]], Any]:
        """Gradients of all micro-batches, added up and averaged over processes; outputs and sample size of this one."""
        outputs, total = [], 0
        for number, sample in enumerate(samples, start=1):
            sample, is_dummy = self._prepare_sample(sample)
            objective = self.objective
            waits = self.data_parallel_world_size > 1 and number < len(samples)
            with objective.no_sync() if waits else nullcontext():
                _, size, logged = self.task.train_step(
                    sample=sample, model=self._model, criterion=objective, optimizer=self.optimizer,
                    update_num=self._updates, ignore_grad=is_dummy, **self._averaged(),
                )  # fmt: skip
            outputs.append(dict.fromkeys(logged, 0) if is_dummy else logged)
            total = total if is_dummy else total + size
        return outputs, total

    def _add_up(
        self, outputs: list[dict[str, Any]], sums: Sequence[Any], others: Sequence[Any] = ()
    ) -> tuple[list[dict[str, Any]], list[float], list[float]]:
        """Outputs and sums over all processes, and figures that all have, as numbers: the one wait for the device."""
        if not self._criterion.logging_outputs_can_be_summed():  # type: ignore[operator]
            gathered = gather_objects((outputs, [float(value) for value in sums]))
            totals = [sum(values) for values in zip(*(one for _, one in gathered), strict=True)]
            return [entry for part, _ in gathered for entry in part], totals, [float(value) for value in others]
        keys = list(outputs[0]) if outputs else []
        added = [*(sum(output.get(key, 0) for output in outputs) for key in keys), *sums]
        numbers, same = read_together(added, others, self.device)
        return [dict(zip(keys, numbers, strict=False))] if keys else [], numbers[len(keys) :], same

    def _log_update(self, norm: float, rows: float) -> None:
        metrics.log_speed("ups", 1.0, priority=100, round=2)
        metrics.log_speed("rows_s", rows, priority=110, round=1)
        metrics.log_scalar("gnorm", norm, priority=400, round=3)
        if (clip := self.cfg.optimization.clip_norm) > 0:
            metrics.log_scalar("clip", 100.0 if norm > clip else 0.0, priority=500, round=1)
        if self.device.type == "cuda":
            used = torch.cuda.max_memory_allocated(self.device)
            free = torch.cuda.get_device_properties(self.device).total_memory - used
            torch.cuda.reset_peak_memory_stats(self.device)
            metrics.log_scalar("gb_free", free / 2**30, priority=1500, round=1, weight=0)
            often = self.cfg.common.empty_cache_freq
            if often > 0 and (self._updates + often - 1) % often == 0:
                torch.cuda.empty_cache()
        else:
            used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        metrics.log_scalar("gb_peak", used / 2**30, priority=1500, round=1, weight=0)

    def _reduce(self, outputs: list[dict[str, Any]], size: float) -> dict[str, float]:
        with metrics.aggregate() as logged:
            self.task.reduce_metrics(outputs, self._criterion)
        return {**logged.get_smoothed_values(), "sample_size": size}

    @metrics.aggregate("valid")
    def valid_step(self, sample: Any) -> dict[str, float]:
        """Figures of a batch in evaluation mode."""
        self._model.eval()
        self._criterion.eval()
        self._objective.scale = 1.0
        dtype = self.precision.autocast
        with torch.no_grad(), torch.autocast(self.device.type, dtype) if dtype else nullcontext():
            sample, is_dummy = self._prepare_sample(sample)
            _, size, logged = self.task.valid_step(sample, self._model, self._objective, **self._averaged())
        if is_dummy:
            size, logged = 0, dict.fromkeys(logged, 0)
        outputs, (size,), _ = self._add_up([logged], (size,))
        return self._reduce(outputs, size)

    # ---- files

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the run, except its place in the data."""
        return state_of(self)

    def load_checkpoint(
        self,
        filename: str,
        reset_optimizer: bool = False,
        reset_lr_scheduler: bool = False,
        optimizer_overrides: Mapping[str, Any] | None = None,
        reset_meters: bool = False,
    ) -> dict[str, Any] | None:
        """Restores what a file holds; its `extra_state`, None without the file: training starts from random weights.

        Raises UserError for another model, for one that was trained with other ids, unless this run's only add some
        behind them, and for the state of an optimizer that does not fit.
        """
        if not os.path.isfile(filename):
            if self.is_data_parallel_master:
                logger.warning("No --restore-file: training starts from random weights.")
            return None
        return restore(self, filename, reset_optimizer, reset_lr_scheduler, optimizer_overrides or {}, reset_meters)


class Clock:
    """Seconds of a run and those it goes on from.

    Attributes:
        averaged: over processes, as of the last update; None before it.
    """

    averaged: float | None = None

    def __init__(self) -> None:
        self.restart(0.0)

    def restart(self, before: float) -> None:
        """The run goes on from one that took so long."""
        self._before, self._began = before, time.time()

    def own(self) -> float:
        """Seconds of this process."""
        return time.time() - self._began + self._before
