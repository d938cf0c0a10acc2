"""fairseq's `polynomial_decay`, with the warm-up given as a share of all updates (`--warmup-ratio`)."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.optim import lr_scheduler
from fairseq.optim.lr_scheduler import register_lr_scheduler
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import (
    PolynomialDecayLRSchedule,
    PolynomialDecayLRScheduleConfig,
)

from utils.errors import UserError

NAME = "polynomial_decay"


@dataclass
class PolynomialDecayConfig(PolynomialDecayLRScheduleConfig):
    """Options of fairseq's schedule and the warm-up ratio."""

    total_num_update: float = field(
        default=0.0, metadata={"help": "updates over which to decay; 0: all of --max-epoch or --max-update"}
    )
    warmup_ratio: float = field(
        default=0.0, metadata={"help": "share of all updates (known from --max-epoch) that warms up the learning rate"}
    )


# The released scripts name the stock schedule, so this one takes its name.
lr_scheduler.LR_SCHEDULER_REGISTRY.pop(NAME)


@register_lr_scheduler(NAME, dataclass=PolynomialDecayConfig)
class PolynomialDecay(PolynomialDecayLRSchedule):
    """Linear warm-up, then polynomial decay to `--end-learning-rate`."""

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        if not 0 <= cfg.warmup_ratio < 1:
            raise UserError(f"--warmup-ratio {cfg.warmup_ratio}: choose a share of at least 0 and below 1.")
        # With a ratio the total is known only when the data are: see `reinit`.
        self.pending = cfg.total_num_update <= 0
        if self.pending:
            cfg.total_num_update = 1
        super().__init__(cfg, optimizer)

    def reinit(self, total_num_update: int, num_updates: int) -> bool:
        """Fixes total and warm-up once the number of updates is known; True if this schedule depends on it.

        A ratio so small that no update would warm up means no warm-up.
        """
        if self.cfg.warmup_ratio <= 0 and not self.pending:
            return False
        self.total_num_update = max(total_num_update, 1)
        if self.cfg.warmup_ratio > 0:
            self.cfg.warmup_updates = int(self.total_num_update * self.cfg.warmup_ratio)
        self.warmup_factor = 1.0 / self.cfg.warmup_updates if self.cfg.warmup_updates > 0 else 1.0
        self.pending = False
        if num_updates == 0:
            self.optimizer.set_lr(self.warmup_factor * self.lr)
        else:
            self.step_update(num_updates)
        return True
