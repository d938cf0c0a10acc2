"""fairseq's trainer and checkpoint files, with what the released recipes and safe files need beyond the stock ones."""

import logging
import math
import os
import random
import re
import shutil
from collections.abc import Callable
from typing import Any

import fairseq.trainer
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.logging import metrics
from fairseq.models.ema.ema import EMA
from fairseq.trainer import Trainer
from omegaconf import DictConfig
from torch import Tensor, nn

from data.collate import damaged_images, without_skipped
from data.text import Vocabulary
from models.weights import upgrade_state_dict
from models.weights.card import KEY, Card
from ofa_module.continuing import FinishedRun, check_unfinished, log_differences
from ofa_module.nonfinite import NonFiniteGuard, NonFiniteUpdate
from ofa_module.preflight import check_room, check_start, check_validation, locked_folder, warn_of_unknown_words
from ofa_module.replaced import Replacement, replaced
from tasks.epochs import EpochBatches, rows_of_earlier_version
from utils import optimizer_state
from utils.checkpoint import SAFE_GLOBALS, DamagedCheckpointError, load_checkpoint, previous_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.logs import kept_root_logger
from utils.original import with_original_options

with kept_root_logger():  # its import configures logging
    import fairseq_cli.train

DAMAGED_SHOWN = 10  # images that are named in the log; all are counted

logger = logging.getLogger(__name__)
_restore = checkpoint_utils.load_checkpoint


class OFATrainer(Trainer):
    """Stock trainer, except for the warm-up ratio, safe and self-healing restores, and no dry run of validation.

    Updates that are not finite are skipped (`ofa_module/nonfinite.py`). Its files describe themselves
    (`models/weights/card.py`).
    """

    _epoch: EpochBatches
    _epoch_began = False
    _schedule_ready = False
    skipped_rows = 0
    damaged_images = 0

    def __init__(self, cfg: DictConfig, task: Any, model: nn.Module, criterion: nn.Module, *args: Any) -> None:
        super().__init__(cfg, task, model, criterion, *args)
        limit = cfg.training.max_nonfinite_updates
        self._guard = NonFiniteGuard(self.get_criterion(), self.get_model(), cfg.checkpoint.save_dir, limit)
        self._card = task.card().plain()

    def state_dict(self) -> dict[str, Any]:
        """As stock, and the card of the run and what the original expects."""
        state = super().state_dict()
        cfg = state["cfg"]
        model = {"patch_image_size": cfg["task"]["patch_image_size"], **cfg["model"]}
        return {**state, "cfg": {**cfg, "model": with_original_options(model)}, KEY: self._card}

    @metrics.aggregate("train")
    def train_step(self, samples: list[Any], raise_oom: bool = False) -> Any:
        """As stock; an update whose loss or gradient is not finite leaves everything as it was, and gives None."""
        updates = self.get_num_updates()
        self._guard.begin()
        try:
            logged = super().train_step(samples, raise_oom)
        except NonFiniteUpdate as found:
            self.zero_grad()
            if hasattr(self.optimizer, "_multiply_factor") and self.optimizer.scaler is None:
                self.optimizer._multiply_factor = 1.0  # bfloat16: only a step would reset it, and it may be NaN
            self._guard.skip(found.args[0], samples, updates)
            return None
        if self.get_num_updates() > updates:
            self._guard.done()
        return logged

    def clip_grad_norm(self, clip_norm: float) -> Tensor:
        """As stock, between backward and step: raises NonFiniteUpdate, on all processes, if there must be no step.

        With a loss scale, a gradient that is not finite is the stock overflow, for which the scale is lowered.
        """
        self._guard.check_losses()
        norm = super().clip_grad_norm(clip_norm)
        if getattr(self.optimizer, "scaler", None) is None and not torch.isfinite(norm).all():
            raise NonFiniteUpdate("gradient")
        return norm

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """As stock; without the file, which only the save folder's may lack, training starts from random weights.

        Raises UserError for a network that was trained with other ids, unless this run's only add some behind them, and
        for the state of an optimizer that does not fit.
        """
        resets = args[0] if args else kwargs.get("reset_optimizer", False)
        trained = None if resets or self.is_fsdp else self.get_model()
        reader = Replacement(
            checkpoint_utils, "load_checkpoint_to_cpu", _reader(self.cfg, self.task.vocab, trained),
            "state = checkpoint_utils.load_checkpoint_to_cpu(", "it runs what a file asks for",
            fairseq.trainer,
        )  # fmt: skip
        if not os.path.isfile(filename):
            logger.warning("There is no --restore-file: training starts from random weights.")
        try:
            with replaced(reader):
                return super().load_checkpoint(filename, *args, **kwargs)
        except Exception as error:
            # The stock trainer hides the reason behind one sentence for all cases.
            if isinstance(error.__context__, UserError):
                raise UserError(
                    f"Cannot load model parameters from checkpoint {filename}: {error.__context__}"
                ) from error
            if re.search("does not match; please reset|parameter group", str(error)):
                advice = optimizer_state.RESET
                raise UserError(f"The optimizer of {filename} cannot be continued ({error}): {advice}.") from error
            raise

    def _build_ema(self) -> None:
        """As stock, but entries that are not floating point (bucket tables, counters) are copied, not averaged."""
        if self.cfg.ema.store_ema:
            state = self._model.state_dict()
            tables = {name for name, value in state.items() if not value.is_floating_point()}
            self._ema = _Average(self._model, self.cfg.ema, self.device, skip_keys=tables)

    def _set_seed(self) -> None:
        """As stock, and the generator of --sample-patch-num: resumed runs draw the same patches."""
        super()._set_seed()
        seed = f"{self.cfg.common.seed} {self.get_num_updates()} {self.data_parallel_rank}"
        self.get_criterion().patch_generator = random.Random(seed)

    def begin_epoch(self, epoch: int) -> None:
        """As stock; from now on validation reads its data."""
        self._epoch_began = True
        super().begin_epoch(epoch)

    def get_train_iterator(self, epoch: int, *args: Any, **kwargs: Any) -> Any:
        """As stock; epochs up to --curriculum read their rows in file order."""
        self.task.shuffle_rows = not self.task.cfg.no_shuffle_rows and epoch > self.cfg.dataset.curriculum
        iterator = super().get_train_iterator(epoch, *args, **kwargs)
        self._train_batches = len(iterator)
        iterator.update_freqs = list(self.cfg.optimization.update_freq)
        if hasattr(self, "_epoch"):
            iterator.more_updates = self._epoch.more_updates
        self._epoch = iterator
        return iterator

    def lr_step(self, epoch: int, val_loss: float | None = None) -> float:
        """As stock; the first call after a restore fixes a schedule that depends on the number of updates."""
        rate = super().lr_step(epoch, val_loss)
        if not self._schedule_ready and hasattr(self, "_train_batches"):
            self._schedule_ready = True
            total = self.total_updates(self._train_batches)
            if self._epoch.changed:
                self._epoch.more_updates = self.get_num_updates() + self._updates_left() - total
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

    def reinit_schedule(self, total: int) -> None:
        """Tells a schedule with a warm-up ratio the updates of all epochs, and logs over how many the rate decays."""
        schedule = self.lr_scheduler
        if not hasattr(schedule, "reinit"):
            return
        from_epochs = total > 0 and schedule.reinit(total, self.get_num_updates())
        if schedule.cfg.warmup_ratio > 0 and not from_epochs:
            logger.warning("--warmup-ratio %s has no effect without --max-epoch.", schedule.cfg.warmup_ratio)
        flag, decay = "--max-epoch" if from_epochs else "--total-num-update", int(schedule.total_num_update)
        last = min(total or math.inf, self.cfg.optimization.max_update or math.inf)
        end = f", of which this run makes {last}" if last < decay else ""
        logger.info(
            "Total steps %d, warmup steps %d, warmup_factor %s: the learning rate decays over %d updates (%s)%s",
            decay, schedule.cfg.warmup_updates, schedule.warmup_factor, decay, flag, end,
        )  # fmt: skip

    def get_valid_iterator(self, subset: str, disable_iterator_cache: bool = False) -> Any:
        """As stock, but empty before the first epoch: the stock loop would read all validation data for nothing."""
        iterator = super().get_valid_iterator(subset, disable_iterator_cache)
        return iterator if self._epoch_began else _Nothing()

    def reset_dummy_batch(self, batch: dict[str, Any]) -> None:
        """The batch that processes without data run; it must hold a good row."""
        good, messages = without_skipped(batch)
        if not good:
            raise UserError(f"No row of the batch can be read: {messages[0]}")
        super().reset_dummy_batch(good)

    def _prepare_sample(self, sample: Any, is_dummy: bool = False) -> Any:
        """As stock; rows skipped as bad are reported, and a batch without good rows counts as empty."""
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
        return super()._prepare_sample(sample, is_dummy)


class _Average(EMA):
    """Stock moving average; a step copies tensors without the upgrade rules that a file's weights need."""

    _stepping = False

    def _step_internal(self, new_model: nn.Module, updates: int | None = None) -> None:
        self._stepping = True
        super()._step_internal(new_model, updates)
        self._stepping = False

    def restore(self, state_dict: dict[str, Tensor], build_fp32_params: bool = False) -> None:
        if self._stepping:
            nn.Module.load_state_dict(self.model, state_dict, strict=False)
        else:
            super().restore(state_dict, build_fp32_params)


class _Nothing:
    """Stands in for an epoch iterator without batches."""

    def next_epoch_itr(self, **_: Any) -> list[Any]:
        return []


def _reader(cfg: DictConfig, vocab: Vocabulary, trained: nn.Module | None) -> Callable[..., dict[str, Any]]:
    """Replaces fairseq's reader: nothing in a file is executed, and every released form is understood.

    In the save directory a torn file gives way to the most trained good one. What a card says of the ids is checked.

    Args:
        trained: the network whose parameters the optimizer's state is brought to; None leaves that state as it is.
    """
    own = os.path.realpath(cfg.checkpoint.save_dir)

    def read(path: str, arg_overrides: dict[str, Any] | None = None, load_on_all_ranks: bool = False) -> dict[str, Any]:
        try:
            state = load_checkpoint(path)
        except DamagedCheckpointError as error:
            other = previous_checkpoint(path) if os.path.dirname(os.path.realpath(path)) == own else None
            if other is None:
                raise
            logger.warning("%s Resuming from %s.", error, other)
            state = load_checkpoint(other)
        if (card := Card.read(state, path)) is not None:
            given = f"--bpe-dir={cfg.task.bpe_dir}"
            advice = "pass the --bpe-dir, --code-dict-size and --num-bins it was trained with"
            card.check_vocabulary(vocab, path, given, advice, grown=True)
        rows_of_earlier_version(state)
        optimizer_state.rename_criterions(state.get("optimizer_history") or [])
        if trained is not None and (saved := state.get("last_optimizer_state")):
            state["last_optimizer_state"] = _fitted(saved, state["model"], trained, path)
        log_differences(cfg, state, path)
        _choose_weights(cfg, state, path)
        return state

    return read


def _choose_weights(cfg: DictConfig, state: dict[str, Any], path: str) -> None:
    """Says by a checkpoint's last and averaged weights what the network and its average start from; in place."""
    latest, extra = state["model"], state.get("extra_state") or {}
    average = extra.get("ema_fp32_params") or extra.get("ema")
    if cfg.training.use_ema_weights_to_init_param and average:
        logger.info("Training starts from the averaged weights of %s.", path)
        state["model"] = dict(average)
    if cfg.ema.store_ema and extra and (cfg.training.use_latest_weights_to_init_ema or "ema" not in extra):
        if "ema" not in extra:
            logger.warning("%s has no averaged weights: the average starts from its weights.", path)
        else:
            logger.info("The average starts from the last weights of %s.", path)
        extra["ema"] = dict(latest)  # the stock trainer would look for them where it deleted them
        extra.pop("ema_fp32_params", None)


def _fitted(saved: dict[str, Any], weights: dict[str, Tensor], trained: nn.Module, path: str) -> dict[str, Any]:
    """The optimizer's state in this run's order; UserError where it does not fit, though the network does."""
    try:
        return optimizer_state.fit(saved, weights, trained, path)
    except UserError:
        try:
            upgrade_state_dict(dict(weights), trained, source=path)
        except UserError:
            return saved  # it is another network: loading its weights, which comes next, says so
        raise


def _save(obj: Any, filename: str, async_write: bool = False) -> None:
    save_checkpoint(obj, filename)


def _copy(src: str, dst: str, overwrite: bool = False) -> bool:
    """A second name for a checkpoint: a hard link where the disk can, and never half a file."""
    if os.path.exists(dst) and not overwrite:
        return False
    temporary = f"{dst}.tmp{os.getpid()}"
    try:
        os.link(src, temporary)
    except OSError:
        shutil.copyfile(src, temporary)
    os.replace(temporary, dst)
    return True


def _restore_and_check(cfg: Any, trainer: OFATrainer, **options: Any) -> Any:
    """As stock, the last step before the first update: raises what would stop the run later, or that it is over."""
    restored = _restore(cfg, trainer, **options)
    check_unfinished(trainer, restored[1].next_epoch_idx)
    check_room(trainer)
    check_validation(trainer)
    if trainer.is_data_parallel_master:
        warn_of_unknown_words(trainer.task.dataset(trainer.cfg.dataset.train_subset))
    return restored


REPLACED = (
    Replacement(
        fairseq_cli.train, "Trainer", OFATrainer, "trainer = Trainer(",
        "the program has no flag for another trainer",
    ),
    Replacement(
        checkpoint_utils, "torch_persistent_save", _save, "def torch_persistent_save(",
        "a program that is killed while it saves leaves half a file",
    ),
    Replacement(
        checkpoint_utils, "load_checkpoint", _restore_and_check, "= checkpoint_utils.load_checkpoint(",
        "it is the last step before the first update: our checks follow it", fairseq_cli.train,
    ),
    Replacement(
        PathManager, "copy", staticmethod(_copy), "def copy(",
        "each further name of a checkpoint would be another copy of gigabytes",
    ),
)  # fmt: skip


def train(cfg: DictConfig) -> None:
    """fairseq's training program with this trainer, our checkpoint files, and checks before the first update."""
    check_start(cfg.checkpoint)
    vars(checkpoint_utils.save_checkpoint).pop("best", None)  # kept there by an earlier training of this process
    # Processes hand checkpoints on to each other through the same safe reader.
    torch.serialization.add_safe_globals([distributed_utils._TensorPlaceholder, *SAFE_GLOBALS])
    cfg.dataset.ignore_unused_valid_subsets = True  # the check takes --data for a folder
    with locked_folder(cfg), replaced(*REPLACED):
        try:
            fairseq_cli.train.main(cfg)
        except FinishedRun as end:
            logger.warning("%s", end)
