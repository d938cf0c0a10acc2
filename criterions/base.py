"""What every registered criterion shares: the forward pass, sample size, logging and its reduction."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.logging import metrics
from torch import Tensor, nn

# Per key of a logging output: the metric is its sum over processes and micro-batches.
COUNTS = ("ntokens", "nsentences", "sample_size")


class OFACriterion(FairseqCriterion):
    """A loss over whole batches; subclasses say how a batch's sums are computed."""

    def __init__(self, task: Any, sentence_avg: bool) -> None:
        super().__init__(task)
        self.sentence_avg = sentence_avg
        self.eos_idx: int = task.target_dictionary.eos()

    @abstractmethod
    def compute(self, model: nn.Module, sample: Mapping[str, Any], update_num: int) -> tuple[Tensor, dict[str, Any]]:
        """Loss to back-propagate (a sum) and what to log: `nll_loss`, `ntokens` of the loss, more if it likes."""

    def forward(
        self, model: nn.Module, sample: Mapping[str, Any], update_num: int = 0, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss, sample size (denominator of the gradient) and logging output of a batch.

        update_num: updates done so far; 0 in validation.
        """
        loss, logged = self.compute(model, sample, update_num)
        counted = logged.pop("counted")
        sample_size = logged["nsentences"] if self.sentence_avg else counted
        return loss, sample_size, {"loss": loss.detach(), **logged, "sample_size": sample_size}

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[Mapping[str, Any]]) -> None:
        """Sums of all processes -> displayed metrics; losses are in nats, `ppl` is 2 to their power (as released)."""
        totals = {key: _total(logging_outputs, key) for key in ("loss", "nll_loss", *COUNTS)}
        size = totals["sample_size"]
        metrics.log_scalar("loss", totals["loss"] / max(size, 1), size, round=3)
        metrics.log_scalar("nll_loss", totals["nll_loss"] / max(size, 1), totals["ntokens"], round=3)
        metrics.log_derived("ppl", lambda meters: _perplexity(meters["nll_loss"].avg))
        for key in COUNTS:
            metrics.log_scalar(key, totals[key], 1, round=3)
        if (total := _total(logging_outputs, "total")) > 0:
            metrics.log_scalar("accuracy", 100 * _total(logging_outputs, "n_correct") / total, total, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All values are sums, so processes add them up in one reduction."""
        return True


def _total(outputs: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(float(output.get(key, 0)) for output in outputs))


def _perplexity(nll: float) -> float:
    return round(2**nll, 2) if nll < 1000 else math.inf


def is_constrained(batch: Mapping[str, Any]) -> bool:
    """Whether the batch says which ids its target positions allow."""
    return batch.get("constraint_masks") is not None or batch.get("constraint_rows") is not None


def constraint_masks(batch: Mapping[str, Any], vocab_size: int) -> Tensor | None:
    """Which ids each target position allows, (B, T, V) bool, or None if the batch constrains nothing.

    Reads `constraint_masks` as it is, or the pairs `constraint_rows`, `constraint_ids` (E,): position b * T + t of the
    target allows the id. A position without pairs allows nothing, which only padding may.
    """
    if batch.get("constraint_rows") is None:
        return batch.get("constraint_masks")
    target = batch["target"]
    masks = torch.zeros(target.numel(), vocab_size, dtype=torch.bool, device=target.device)
    masks[batch["constraint_rows"], batch["constraint_ids"]] = True
    return masks.view(*target.shape, vocab_size)


def twice(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with every sample a second time (R-Drop); the given one stays as it is."""
    doubled: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            doubled[key] = torch.cat([value, value])
        elif isinstance(value, Mapping):
            doubled[key] = twice(value)
        elif key in ("ntokens", "nsentences"):
            doubled[key] = 2 * value
        else:
            doubled[key] = value
    return doubled
