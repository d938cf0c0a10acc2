"""`adjust_label_smoothed_cross_entropy`: the loss of every task that learns from given targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Optional

from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from omegaconf import II
from torch import Tensor, nn

from criterions.base import OFACriterion, constraint_masks, is_constrained, twice
from criterions.linear_cross_entropy import linear_cross_entropy
from criterions.losses import (
    accuracy_counts,
    check_loss_options,
    counted_tokens,
    label_smoothed_cross_entropy,
    take_tokens,
    token_rows,
    token_weights,
)
from utils.errors import UserError


@dataclass
class LabelSmoothedCrossEntropyConfig(FairseqDataclass):
    """Options of the loss; `criterions.losses.label_smoothed_cross_entropy` says what they do."""

    label_smoothing: float = field(default=0.0, metadata={"help": "share of the target's weight given to other ids"})
    report_accuracy: bool = field(default=False, metadata={"help": "also log token accuracy"})
    ignore_prefix_size: int = field(default=0, metadata={"help": "leave out the first N target positions of a row"})
    ignore_eos: bool = field(default=False, metadata={"help": "leave out the end of sentence of a row"})
    sentence_avg: bool = II("optimization.sentence_avg")
    drop_worst_ratio: float = field(
        default=0.0, metadata={"help": "share of tokens with the largest loss to leave out"}
    )
    drop_worst_after: int = field(default=0, metadata={"help": "leave worst tokens out only after this many updates"})
    use_rdrop: bool = field(default=False, metadata={"help": "R-Drop: two passes and a symmetric KL between them"})
    reg_alpha: float = field(default=1.0, metadata={"help": "weight of the R-Drop term"})
    constraint_range: Optional[str] = field(
        default=None, metadata={"help": '"start,end": only ids start to end - 1 and the special ids are possible'}
    )
    sample_patch_num: int = field(
        default=0, metadata={"help": "pretraining: patches drawn of each image with text (0: all)"}
    )


@register_criterion("adjust_label_smoothed_cross_entropy", dataclass=LabelSmoothedCrossEntropyConfig)
class AdjustLabelSmoothedCrossEntropyCriterion(OFACriterion):
    """Label-smoothed cross entropy with constraints, confidences, worst-token dropping and R-Drop."""

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(task, cfg.sentence_avg)
        self.cfg, self.sample_patch_num = cfg, cfg.sample_patch_num
        try:
            check_loss_options(**self.checked_options())
        except ValueError as error:
            raise UserError(str(error)) from error

    def checked_options(self) -> dict[str, Any]:
        """Options with bounds, as `check_loss_options` names them."""
        return dict(
            epsilon=self.cfg.label_smoothing,
            drop_worst_ratio=self.cfg.drop_worst_ratio,
            ignore_prefix_size=self.cfg.ignore_prefix_size,
            constraint_range=self.cfg.constraint_range,
        )

    def bonus_options(self, update_num: int) -> dict[str, Any]:
        """Further arguments of the loss, which then needs all logits of a batch at a time."""
        return {}

    def compute(self, model: nn.Module, sample: Mapping[str, Any], update_num: int) -> tuple[Tensor, dict[str, Any]]:
        """Forward pass and loss of one batch.

        Only target tokens that count are projected to the vocabulary, and no more than a chunk of them at a time
        unless an option needs all.
        """
        batch = twice(sample) if self.cfg.use_rdrop else sample
        target, conf = batch["target"], batch.get("conf")
        which: dict[str, Any] = dict(
            pad=self.padding_idx,
            eos=self.eos_idx,
            ignore_prefix_size=self.cfg.ignore_prefix_size,
            ignore_eos=self.cfg.ignore_eos,
        )
        options: dict[str, Any] = dict(
            epsilon=self.cfg.label_smoothing,
            drop_worst_ratio=self.cfg.drop_worst_ratio if update_num > self.cfg.drop_worst_after else 0.0,
            constraint_range=self.cfg.constraint_range,
        )
        bonus = self.bonus_options(update_num)
        logged: dict[str, Any] = {"ntokens": batch["ntokens"], "nsentences": target.size(0)}
        if bonus or self.cfg.use_rdrop or self.cfg.report_accuracy or is_constrained(sample):
            positions = counted_tokens(target, **which)
            logits = model(**batch["net_input"], head=partial(_project, positions=positions))[0]
            masks = constraint_masks(sample, positions[: len(positions) // (1 + self.cfg.use_rdrop)], logits.size(1))
            if masks is not None:
                masks = masks.repeat(1 + self.cfg.use_rdrop, 1).unsqueeze(1)
            # One row per token: the loss's own selection then keeps all.
            logits, columns = logits.unsqueeze(1), take_tokens(target, positions).unsqueeze(1)
            given = dict(pad=self.padding_idx, eos=self.eos_idx, constraint_masks=masks)
            rdrop = dict(use_rdrop=self.cfg.use_rdrop, reg_alpha=self.cfg.reg_alpha)
            weights = None if conf is None else token_weights(conf, target, positions)
            sums = label_smoothed_cross_entropy(logits, columns, conf=weights, **given, **options, **rdrop, **bonus)
            if self.cfg.report_accuracy:
                rows = token_rows(logits.detach(), columns, constraint_range=self.cfg.constraint_range, **given)
                logged["n_correct"], logged["total"] = accuracy_counts(rows)
        else:
            head = partial(linear_cross_entropy, target=target, conf=conf, **which, **options)
            sums = model(**batch["net_input"], head=head)[0]
        if "objective" in batch:
            logged |= self.loss_by_objective(batch, counted_tokens(target, **which), sums)
        return sums.loss, {**logged, "nll_loss": sums.nll_loss, "counted": sums.ntokens}


def _project(features: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
    """Logits (N, V) of features (B, T, C) at flat positions (N,)."""
    return take_tokens(features, positions) @ weight.t()
