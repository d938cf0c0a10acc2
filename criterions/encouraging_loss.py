"""`adjust_label_smoothed_encouraging_loss`: cross entropy with a bonus for probable targets."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import register_criterion

from criterions.label_smoothed_cross_entropy import (
    AdjustLabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyConfig,
)


@dataclass
class EncouragingLossConfig(LabelSmoothedCrossEntropyConfig):
    """Options of the loss; `criterions.losses` says what they do."""

    log_end: float = field(
        default=0.75, metadata={"help": "probability from which the bonus continues as its tangent; 1: never"}
    )
    drop_best_ratio: float = field(
        default=0.0, metadata={"help": "share of tokens with the smallest loss to leave out, after the worst"}
    )
    drop_best_after: int = field(default=0, metadata={"help": "leave best tokens out only after this many updates"})


@register_criterion("adjust_label_smoothed_encouraging_loss", dataclass=EncouragingLossConfig)
class AdjustLabelSmoothedEncouragingLossCriterion(AdjustLabelSmoothedCrossEntropyCriterion):
    """Label-smoothed cross entropy and `criterions.losses.encouraging_bonus`."""

    def checked_options(self) -> dict[str, Any]:
        """Those of the cross entropy, and this loss's own."""
        own = dict(drop_best_ratio=self.cfg.drop_best_ratio, log_end=self.cfg.log_end)
        return {**super().checked_options(), **own}

    def bonus_options(self, update_num: int) -> dict[str, Any]:
        """The bonus, and how many of the best tokens are left out after this many updates."""
        ratio = self.cfg.drop_best_ratio if update_num > self.cfg.drop_best_after else 0.0
        return dict(log_end=self.cfg.log_end, drop_best_ratio=ratio)
