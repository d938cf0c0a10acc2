"""fairseq's `polynomial_decay`, with the warmup given as a share of all updates (`--warmup-ratio`)."""

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
    """Options of fairseq's schedule and the warmup ratio."""

    total_num_update: float = field(
        default=1_000_000.0,
        metadata={"help": "updates over which to decay, unless --warmup-ratio and --max-epoch determine it"},
    )
    warmup_ratio: float = field(
        default=0.0,
        metadata={
            "help": "share of the updates of --max-epoch epochs that warms up the rate, which then decays over them"
        },
    )


# The released scripts name the stock schedule, so this one takes its name.
lr_scheduler.LR_SCHEDULER_REGISTRY.pop(NAME)


@register_lr_scheduler(NAME, dataclass=PolynomialDecayConfig)
class PolynomialDecay(PolynomialDecayLRSchedule):
    """Linear warmup, then polynomial decay to `--end-learning-rate`."""

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        if not 0 <= cfg.warmup_ratio < 1:
            raise UserError(f"--warmup-ratio {cfg.warmup_ratio}: choose a share of at least 0 and below 1.")
        if cfg.total_num_update <= 0:
            raise UserError(f"--total-num-update {cfg.total_num_update:g}: choose a number of updates above 0.")
        super().__init__(cfg, optimizer)

    def reinit(self, total_num_update: int, num_updates: int) -> bool:
        """Fixes total and warmup once the updates of all epochs are known; False without a ratio, which needs neither.

        A ratio so small that no update would warm up means no warmup.
        """
        if self.cfg.warmup_ratio <= 0:
            return False
        self.total_num_update = max(total_num_update, 1)
        self.cfg.warmup_updates = int(self.total_num_update * self.cfg.warmup_ratio)
        self.warmup_factor = 1.0 / self.cfg.warmup_updates if self.cfg.warmup_updates > 0 else 1.0
        if num_updates == 0:
            self.optimizer.set_lr(self.warmup_factor * self.lr)
        else:
            self.step_update(num_updates)
        return True
