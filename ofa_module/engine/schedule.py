"""The learning rate, and the number of updates that it and the log go by."""

import logging
import math

from fairseq.logging import metrics
from fairseq.optim import FairseqOptimizer, lr_scheduler
from omegaconf import DictConfig

from tasks.epochs import EpochBatches

logger = logging.getLogger(__name__)


class Schedule:
    """The learning rate of a run.

    Attributes:
        rates: fairseq's schedule of --lr-scheduler.
    """

    _epoch: EpochBatches
    _epoch_batches = 0
    _fixed = False

    def __init__(self, cfg: DictConfig, optimizer: FairseqOptimizer) -> None:
        self.cfg = cfg
        self.rates = lr_scheduler.build_lr_scheduler(cfg.lr_scheduler, optimizer)
        self.rates.step_update(0)

    def next_epoch(self, batches: EpochBatches) -> None:
        """These are the batches of the epoch that comes next."""
        if self._epoch_batches:
            batches.more_updates = self._epoch.more_updates
        self._epoch, self._epoch_batches = batches, len(batches)

    def begin_epoch(self, epoch: int, updates: int) -> None:
        """An epoch begins after so many updates."""
        self.rates.step_begin_epoch(epoch)
        self.follow(updates)

    def follow(self, updates: int) -> float:
        """The rate after so many updates, which the optimizer takes and the log shows."""
        rate = self.rates.step_update(updates)
        named = rate if isinstance(rate, dict) else {"": rate}
        for name, value in named.items():
            metrics.log_scalar(f"lr_{name}" if name else "lr", value, weight=0, priority=300)
        return float(named.get("default", next(iter(named.values()))))

    def end_epoch(self, epoch: int, score: float | None, updates: int) -> float:
        """An epoch ends with a score of validation; the rate that comes next.

        The first call, which comes when a run starts, fixes a schedule that depends on the number of updates.
        """
        self.rates.step(epoch, score)
        rate = self.follow(updates)
        if not self._fixed and self._epoch_batches:
            self._fixed = True
            total = self._total()
            if self._epoch.changed:
                self._epoch.more_updates = updates + self._left() - total
            self.decay_over(total and total + self._epoch.more_updates, updates)
        return rate

    def _left(self) -> int:
        """Updates from here to the end of the last epoch."""
        later = self._total() - self._total(self._epoch.epoch)
        return later + math.ceil(self._epoch.batches_left / self._epoch.update_freq)

    def _total(self, epochs: int | None = None) -> int:
        """Updates of the first `epochs` epochs, or of all, whatever --max-update says; 0 without --max-epoch."""
        freq = self.cfg.optimization.update_freq
        numbers = range(self.cfg.optimization.max_epoch or 0)[:epochs]
        return sum(math.ceil(self._epoch_batches / freq[min(i, len(freq) - 1)]) for i in numbers)

    def last_update(self) -> int:
        """Number of the run's last update, as far as its flags say; 0 if they do not."""
        total = self._total()
        ends = [end for end in (total and total + self._epoch.more_updates, self.cfg.optimization.max_update) if end]
        return min(ends, default=0)

    def decay_over(self, total: int, updates: int) -> None:
        """Tells a schedule with a warmup ratio the updates of all epochs, and logs over how many the rate decays.

        Args:
            total: updates of all epochs, 0 without --max-epoch. updates: how many of them are done.
        """
        rates = self.rates
        if not hasattr(rates, "reinit"):
            return
        from_epochs = total > 0 and rates.reinit(total, updates)
        if rates.cfg.warmup_ratio > 0 and not from_epochs:
            logger.warning("--warmup-ratio %s has no effect without --max-epoch.", rates.cfg.warmup_ratio)
        flag, decay = "--max-epoch" if from_epochs else "--total-num-update", int(rates.total_num_update)
        last = min(total or math.inf, self.cfg.optimization.max_update or math.inf)
        end = f", of which this run makes {last}" if last < decay else ""
        logger.info(
            "Total steps %d, warmup steps %d, warmup_factor %s: the learning rate decays over %d updates (%s)%s",
            decay, rates.cfg.warmup_updates, rates.warmup_factor, decay, flag, end,
        )  # fmt: skip
