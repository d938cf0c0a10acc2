"""One update and one validation step of a run, and all state that a checkpoint holds of it."""

import logging
import math
import os
import random
import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from fairseq import utils as fairseq_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import meters, metrics
from fairseq.optim import lr_scheduler
from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.collate import damaged_images, without_skipped
from models.weights.card import KEY
from ofa_module.engine.optimizers import Average, build_optimizer, restore_optimizer, scale_gradients
from ofa_module.engine.restore import read_for
from ofa_module.nonfinite import NonFiniteGuard, NonFiniteUpdate
from tasks.epochs import EpochBatches
from utils import optimizer_state
from utils.distributed import gather_objects
from utils.errors import UserError
from utils.original import with_original_options

DAMAGED_SHOWN = 10  # images that are named in the log; all are counted
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """Number formats of a run.

    Attributes:
        weights: of the network and what it is given. autocast: of the products in it, if another one.
        scaled: whether the loss is scaled up for the backward pass, since float16's smallest numbers are not small.
    """

    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scaled: bool = False

    @classmethod
    def of(cls, cfg: DictConfig) -> Self:
        """What the flags of fairseq's group `common` ask for."""
        if not (cfg.fp16 or cfg.bf16 or cfg.amp):
            return cls()
        dtype = torch.bfloat16 if cfg.bf16 else torch.float16
        whole = cfg.memory_efficient_fp16 or cfg.memory_efficient_bf16
        return cls(dtype if whole else torch.float32, None if whole else dtype, dtype == torch.float16)

    def __str__(self) -> str:
        names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
        return names[self.weights] + (f", products in {names[self.autocast]}" if self.autocast else "")


class Objective(nn.Module):
    """Network and loss as one module, so that data parallelism sees one forward pass whatever the loss does.

    Called as a criterion is; the network it is given must be its own.
    """

    def __init__(self, criterion: nn.Module, network: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.criterion, self.network, self.precision = criterion, network, precision
        self.scale = 1.0

    def forward(self, model: nn.Module, sample: Any, **options: Any) -> tuple[Tensor, Any, dict[str, Any]]:
        """Loss times `scale`, sample size, what to log."""
        dtype, device = self.precision.autocast, next(self.network.parameters()).device.type
        with torch.autocast(device, dtype) if dtype else nullcontext():
            loss, size, logged = self.criterion(model, sample, **options)
        return loss * self.scale if self.scale != 1 else loss, size, logged


class OFATrainer:
    """Updates a network; validates, saves and restores it. Its interface is that of fairseq's trainer.

    Args:
        cfg: the configuration of `train.parse_args`. model: not yet on the device.

    Attributes:
        skipped_rows, damaged_images: counts of this process.
    """

    skipped_rows = 0
    damaged_images = 0
    _epoch: EpochBatches
    _schedule_ready = False

    def __init__(self, cfg: DictConfig, task: Any, model: nn.Module, criterion: nn.Module) -> None:
        self.cfg, self.task = cfg, task
        on_gpu = torch.cuda.is_available() and not cfg.common.cpu
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.precision = Precision.of(cfg.common)
        self._model = model.to(self.device, self.precision.weights)
        self._criterion = criterion.to(self.device)
        self._objective = Objective(self._criterion, self._model, self.precision)
        self._parallel: nn.Module | None = None
        self._ema: Average | None = None
        self._dummy: Any = None
        self._history: list[dict[str, Any]] = []
        self._updates, self._previous_time, self._began = 0, 0.0, time.time()
        self._training_time: float | None = None
        self._build_optimizer()
        limit = cfg.training.max_nonfinite_updates
        self._guard = NonFiniteGuard(self._criterion, model, cfg.checkpoint.save_dir, limit)
        self._card = task.card().plain()
        metrics.log_start_time("wall", priority=790, round=0)

    def _build_optimizer(self) -> None:
        common, optimization = self.cfg.common, self.cfg.optimization
        self.parameters = [p for p in self._objective.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.cfg.optimizer, self.parameters)
        self.lr_scheduler = lr_scheduler.build_lr_scheduler(self.cfg.lr_scheduler, self.optimizer)
        self.lr_scheduler.step_update(0)
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
        """The network itself."""
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
        self._log_rate()
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
        """The averaged network, as a keyword of the task's steps, if the task wants it."""
        wanted = self.cfg.ema.store_ema and getattr(self.task, "uses_ema", False)
        return {"ema_model": self.ema.get_model()} if wanted and self.ema is not None else {}

    def cumulative_training_time(self) -> float:
        """Seconds of this run and those it goes on from, averaged over processes."""
        return self._own_time() if self._training_time is None else self._training_time

    def _own_time(self) -> float:
        return time.time() - self._began + self._previous_time

    # ---- data

    def get_train_iterator(self, epoch: int, load_dataset: bool = True) -> EpochBatches:
        """Batches of an epoch; epochs up to --curriculum read their rows in file order."""
        dataset, common = self.cfg.dataset, self.cfg.common
        self.task.shuffle_rows = not self.task.cfg.no_shuffle_rows and epoch > dataset.curriculum
        if load_dataset:
            self.task.load_dataset(dataset.train_subset, epoch=epoch, combine=True)
        seed = common.seed + (epoch if dataset.update_ordered_indices_seed else 0)
        iterator = self._batches(dataset.train_subset, dataset.batch_size, seed, epoch)
        self._train_batches = len(iterator)
        iterator.update_freqs = list(self.cfg.optimization.update_freq)
        if hasattr(self, "_epoch"):
            iterator.more_updates = self._epoch.more_updates
        self._epoch = iterator
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
            raise UserError(f"No row of the batch can be read: {messages[0]}")
        self._dummy = good

    def _prepare_sample(self, sample: Any) -> tuple[Any, bool]:
        """A batch on the device, and whether it is a stand-in for one without good rows, which are reported."""
        if sample:
            sample, messages = without_skipped(sample)
            for message in messages:
                logger.warning("skipped %s", message)
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
        self.lr_scheduler.step_begin_epoch(epoch)
        self._log_rate()
        self.task.begin_epoch(epoch, self._model)

    @property
    def objective(self) -> Any:
        """Network and loss, over all processes if there are several."""
        if self.data_parallel_world_size == 1:
            return self._objective
        if self._parallel is None:
            given = self.cfg.distributed_training
            parallel = DistributedDataParallel(
                self._objective, process_group=distributed_utils.get_data_parallel_group(),
                broadcast_buffers=given.broadcast_buffers, bucket_cap_mb=given.bucket_cap_mb,
                gradient_as_bucket_view=given.gradient_as_bucket_view,
                find_unused_parameters=given.find_unused_parameters or "legacy" in given.ddp_backend
                or given.ddp_backend == "no_c10d",
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
        sums = (size, self._guard.bad_losses(), self._own_time())
        outputs, (size, bad, total_time), (norm,) = self._add_up(outputs, sums, (total_norm,))
        self._training_time = total_time / self.data_parallel_world_size
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
        numbers = self._read_together(added, others)
        end = len(added)
        return [dict(zip(keys, numbers, strict=False))] if keys else [], numbers[len(keys) : end], numbers[end:]

    def _read_together(self, added: Sequence[Any], others: Sequence[Any]) -> list[float]:
        """Values as numbers, `added` summed over processes; one wait for the device."""
        values = [*added, *others]
        if self.data_parallel_world_size > 1:
            plain = torch.tensor([0.0 if isinstance(x, Tensor) else float(x) for x in values], dtype=torch.float64)
            total = plain.to(self.device, non_blocking=True)
            if places := [i for i, x in enumerate(values) if isinstance(x, Tensor)]:
                total[places] = torch.stack([values[i].double().reshape(()) for i in places])
            torch.distributed.all_reduce(total[: len(added)], group=distributed_utils.get_data_parallel_group())
            return total.tolist()
        tensors = [x.double().reshape(()) for x in values if isinstance(x, Tensor)]
        read = iter(torch.stack(tensors).tolist() if tensors else ())
        return [next(read) if isinstance(x, Tensor) else float(x) for x in values]

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

    # ---- learning rate

    def _log_rate(self) -> float:
        rate = self.lr_scheduler.step_update(self._updates)
        rates = rate if isinstance(rate, dict) else {"": rate}
        for name, value in rates.items():
            metrics.log_scalar(f"lr_{name}" if name else "lr", value, weight=0, priority=300)
        return float(rates.get("default", next(iter(rates.values()))))

    def lr_step(self, epoch: int, val_loss: float | None = None) -> float:
        """An epoch ends; the first call after a restore fixes a schedule that depends on the number of updates."""
        self.lr_scheduler.step(epoch, val_loss)
        rate = self._log_rate()
        if not self._schedule_ready and hasattr(self, "_train_batches"):
            self._schedule_ready = True
            total = self.total_updates(self._train_batches)
            if self._epoch.changed:
                self._epoch.more_updates = self._updates + self._updates_left() - total
            self.reinit_schedule(total and total + self._epoch.more_updates)
        return rate

    def _updates_left(self) -> int:
        """Updates from here to the end of the last epoch."""
        later = self.total_updates(self._train_batches) - self.total_updates(self._train_batches, self._epoch.epoch)
        return later + math.ceil(self._epoch.batches_left / self._epoch.update_freq)

    def total_updates(self, batches: int, max_epoch: int | None = None) -> int:
        """Updates of --max-epoch epochs of so many batches, whatever --max-update says; 0 without --max-epoch."""
        freq = self.cfg.optimization.update_freq
        epochs = range(self.cfg.optimization.max_epoch or 0)[:max_epoch]
        return sum(math.ceil(batches / freq[min(i, len(freq) - 1)]) for i in epochs)

    def last_update(self) -> int:
        """Number of the run's last update, as far as its flags say; 0 if they do not."""
        total = self.total_updates(self._train_batches)
        ends = [end for end in (total and total + self._epoch.more_updates, self.cfg.optimization.max_update) if end]
        return min(ends, default=0)

    def reinit_schedule(self, total: int) -> None:
        """Tells a schedule with a warm-up ratio the updates of all epochs, and logs over how many the rate decays."""
        schedule = self.lr_scheduler
        if not hasattr(schedule, "reinit"):
            return
        from_epochs = total > 0 and schedule.reinit(total, self._updates)
        if schedule.cfg.warmup_ratio > 0 and not from_epochs:
            logger.warning("--warmup-ratio %s has no effect without --max-epoch.", schedule.cfg.warmup_ratio)
        flag, decay = "--max-epoch" if from_epochs else "--total-num-update", int(schedule.total_num_update)
        last = min(total or math.inf, self.cfg.optimization.max_update or math.inf)
        end = f", of which this run makes {last}" if last < decay else ""
        logger.info(
            "Total steps %d, warmup steps %d, warmup_factor %s: the learning rate decays over %d updates (%s)%s",
            decay, schedule.cfg.warmup_updates, schedule.warmup_factor, decay, flag, end,
        )  # fmt: skip

    # ---- files

    def state_dict(self) -> dict[str, Any]:
        """What fairseq and the original expect of a file, and the card of the run."""
        cfg: Any = OmegaConf.to_container(self.cfg, resolve=True, enum_to_str=True)
        model = {"patch_image_size": cfg["task"]["patch_image_size"], **cfg["model"]}
        own_parameters = any(True for _ in self._criterion.parameters())
        past = {
            "criterion_name": type(self._criterion).__name__,
            "optimizer_name": type(self.optimizer).__name__,
            "lr_scheduler_state": self.lr_scheduler.state_dict(),
            "num_updates": self._updates,
        }
        extra = {"metrics": metrics.state_dict(), "previous_training_time": self.cumulative_training_time()}
        weights = self._model.state_dict()
        if self.ema is not None:
            tables = {name: weights[name] for name in self.ema.skip_keys}  # equal, and so stored once
            extra["ema"] = {**self.ema.get_model().state_dict(), **tables}
            if self.cfg.ema.ema_fp32:
                extra["ema_fp32_params"] = self.ema.fp32_params
        if self.scaler is not None:
            extra["loss_scale"] = self.scaler.loss_scale
        state = {
            "args": None,
            "cfg": {**cfg, "model": with_original_options(model)},
            "model": weights,
            "criterion": self._criterion.state_dict() if own_parameters else None,
            "optimizer_history": [*self._history, past],
            "task_state": self.task.state_dict(),
            "extra_state": extra,
            KEY: self._card,
        }
        if not self.cfg.checkpoint.no_save_optimizer_state:
            state["last_optimizer_state"] = self.optimizer.state_dict()
        return dict(fairseq_utils.apply_to_sample(_OnCPU(), state))

    def load_checkpoint(
        self,
        filename: str,
        reset_optimizer: bool = False,
        reset_lr_scheduler: bool = False,
        optimizer_overrides: Mapping[str, Any] | None = None,
        reset_meters: bool = False,
    ) -> dict[str, Any] | None:
        """Restores what a file holds; its `extra_state`, None without the file: training starts from random weights.

        Raises UserError for another network, for one that was trained with other ids, unless this run's only add some
        behind them, and for the state of an optimizer that does not fit.
        """
        if not os.path.isfile(filename):
            logger.warning("There is no --restore-file: training starts from random weights.")
            return None
        state = self._read(filename, None if reset_optimizer else self._model)
        history = state["optimizer_history"] or []
        try:
            if history and "num_updates" in history[-1]:
                self._model.set_num_updates(history[-1]["num_updates"])  # type: ignore[operator]
            self._model.load_state_dict(state["model"], strict=True)
            if state.get("criterion") and any(True for _ in self._criterion.parameters()):
                self._criterion.load_state_dict(state["criterion"], strict=True)
        except UserError as error:
            raise UserError(f"Cannot load model parameters from checkpoint {filename}: {error}") from error
        self._history, extra = history, state["extra_state"]
        saved = state.get("last_optimizer_state")
        if saved is not None and not reset_optimizer:
            self._restore_optimizer(saved, filename, reset_lr_scheduler, optimizer_overrides or {})
            if self.scaler is not None and "loss_scale" in extra:
                self.scaler.loss_scale = extra["loss_scale"]
        if extra is not None:
            self._restore_extra(extra, reset_meters)
            epoch = extra["train_iterator"]["epoch"]
            logger.info("Loaded checkpoint %s (epoch %s @ %d updates)", filename, epoch, self._updates)
        return extra

    def _read(self, filename: str, trained: nn.Module | None) -> dict[str, Any]:
        """The file's content, which one process reads for all unless --load-checkpoint-on-all-dp-ranks."""
        alone = self.data_parallel_world_size == 1 or self.cfg.checkpoint.load_checkpoint_on_all_dp_ranks
        state: Any = None
        if alone or self.is_data_parallel_master:
            state = read_for(self.cfg, self.task.vocab, filename, trained)
        if not alone:
            group = distributed_utils.get_data_parallel_group()
            state = distributed_utils.broadcast_object(state, src_rank=0, group=group, dist_device=self.device)
        return dict(state)

    def _restore_optimizer(
        self, saved: dict[str, Any], filename: str, reset_schedule: bool, overrides: Mapping[str, Any]
    ) -> None:
        last = self._history[-1]
        try:
            for what, own in (("criterion", self._criterion), ("optimizer", self.optimizer)):
                name = optimizer_state.PLAIN.get(last[f"{what}_name"], last[f"{what}_name"])
                if name != type(own).__name__:
                    raise ValueError(f"its {what} is {name}, this run's {type(own).__name__}")
            restore_optimizer(self.optimizer, saved, overrides)
        except ValueError as error:
            advice = optimizer_state.RESET
            raise UserError(f"The optimizer of {filename} cannot be continued ({error}): {advice}.") from error
        if not reset_schedule:
            self.lr_scheduler.load_state_dict(last["lr_scheduler_state"])
        self.set_num_updates(last["num_updates"])

    def _restore_extra(self, extra: dict[str, Any], reset_meters: bool) -> None:
        self._previous_time, self._began = extra.get("previous_training_time", 0.0), time.time()
        iterator = extra["train_iterator"]
        self.lr_step(iterator["epoch"])
        begins = iterator.get("version", 1) >= 2 and iterator["iterations_in_epoch"] == 0
        if "metrics" in extra and not reset_meters and not begins:
            metrics.load_state_dict(extra["metrics"])
            for meter in metrics.get_meters("default"):
                if isinstance(meter, meters.TimeMeter):
                    meter.reset()
        if self.ema is not None:
            self.ema.restore(extra["ema"])
            if self.cfg.ema.ema_fp32:
                self.ema.build_fp32_params(extra.get("ema_fp32_params"))


class _OnCPU:
    """Tensors as a file holds them; those that share their memory still do."""

    def __init__(self) -> None:
        self._seen: dict[Any, Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if key not in self._seen or not tensor.numel():
            self._seen[key] = tensor.detach().cpu().contiguous()
        return self._seen[key]
