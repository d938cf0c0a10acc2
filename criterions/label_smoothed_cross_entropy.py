"""`adjust_label_smoothed_cross_entropy`: the loss of every task that learns from given targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from omegaconf import II
from torch import Tensor, nn

from criterions.base import OFACriterion, twice
from criterions.losses import accuracy_counts, check_loss_options, label_smoothed_cross_entropy, token_rows
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


@register_criterion("adjust_label_smoothed_cross_entropy", dataclass=LabelSmoothedCrossEntropyConfig)
class AdjustLabelSmoothedCrossEntropy(OFACriterion):
    """Label-smoothed cross entropy with constraints, confidences, worst-token dropping and R-Drop."""

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        report_accuracy: bool,
        ignore_prefix_size: int,
        ignore_eos: bool,
        drop_worst_ratio: float,
        drop_worst_after: int,
        use_rdrop: bool,
        reg_alpha: float,
        constraint_range: Optional[str],
    ) -> None:
        super().__init__(task, sentence_avg)
        try:
            check_loss_options(label_smoothing, drop_worst_ratio, ignore_prefix_size, constraint_range)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.report_accuracy = report_accuracy
        self.drop_worst_ratio, self.drop_worst_after = drop_worst_ratio, drop_worst_after
        self.use_rdrop = use_rdrop
        self.restriction = dict(
            pad=self.padding_idx,
            eos=self.eos_idx,
            constraint_range=constraint_range,
            ignore_prefix_size=ignore_prefix_size,
            ignore_eos=ignore_eos,
        )
        self.smoothing = dict(epsilon=label_smoothing, use_rdrop=use_rdrop, reg_alpha=reg_alpha)

    def compute(self, model: nn.Module, sample: Mapping[str, Any], update_num: int) -> tuple[Tensor, dict[str, Any]]:
        """Forward pass and loss of one batch."""
        if self.use_rdrop:
            sample = twice(sample)
        logits = model(**sample["net_input"])[0]
        masks, target = sample.get("constraint_masks"), sample["target"]
        sums = label_smoothed_cross_entropy(
            logits,
            target,
            constraint_masks=masks,
            conf=sample.get("conf"),
            drop_worst_ratio=self.drop_worst_ratio if update_num > self.drop_worst_after else 0.0,
            **self.restriction,
            **self.smoothing,
        )
        logged = {
            "nll_loss": sums.nll_loss,
            "ntokens": sample["ntokens"],
            "nsentences": target.size(0),
            "counted": sums.ntokens,
        }
        if self.report_accuracy:
            rows = token_rows(logits.detach(), target, constraint_masks=masks, conf=None, **self.restriction)
            logged["n_correct"], logged["total"] = accuracy_counts(rows)
        return sums.loss, logged
