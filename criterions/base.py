"""What every registered criterion shares: the forward pass, sample size, logging and its reduction."""

import math
import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.logging import metrics
from torch import Tensor, nn

from criterions.losses import LossSums, take_tokens, token_weights
from data.pretrain_rows import OBJECTIVES

# Per key of a logging output: the metric is its sum over processes and micro-batches.
COUNTS = ("ntokens", "nsentences", "sample_size")
# Of each objective of pretraining: its negative log-likelihood, and the weight that it is divided by.
OBJECTIVE_KEYS = tuple(f"{kind}_{name}" for kind in ("nll", "weight") for name in OBJECTIVES)


class OFACriterion(FairseqCriterion):
    """A loss over whole batches; subclasses say how a batch's sums are computed.

    Attributes:
        sample_patch_num: patches drawn of each image in the first part of a two-part batch; 0 = all.
        patch_generator: draws them; the trainer seeds one for each update. None is Python's global generator.
    """

    sample_patch_num = 0
    patch_generator: random.Random | None = None

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

        Args:
            sample: a batch, or in pretraining a list of two: image-text examples, and the rest.
            update_num: updates done so far; 0 in validation.
        """
        if isinstance(sample, list):
            return self._sum_of_means(model, sample, update_num)
        loss, logged = self.compute(model, sample, update_num)
        counted = logged.pop("counted")
        sample_size = logged["nsentences"] if self.sentence_avg else counted
        return loss, sample_size, {"loss": loss.detach(), **logged, "sample_size": sample_size}

    def _sum_of_means(
        self, model: nn.Module, parts: list[Mapping[str, Any]], update_num: int
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Each part's mean loss, added up: parts weigh the same whatever they hold; {} stands for an absent part."""
        losses: list[Tensor] = []
        logged: dict[str, Any] = dict.fromkeys(("nll_loss", "ntokens", "nsentences"), 0)
        for number, part in enumerate(parts, start=1):
            if "net_input" not in part:
                continue
            if number == 1 and self.sample_patch_num > 0:
                drawn = {"sample_patch_num": self.sample_patch_num, "patch_generator": self.patch_generator}
                part = {**part, "net_input": {**part["net_input"], **drawn}}
            loss, own = self.compute(model, part, update_num)
            counted = own.pop("counted")
            losses.append(loss / max(counted, 1))
            logged |= {f"loss_v{number}": loss.detach(), f"sample_size_v{number}": counted}
            logged["nll_loss"] = logged["nll_loss"] + own["nll_loss"] / max(counted, 1)
            logged |= {key: logged[key] + own[key] for key in ("ntokens", "nsentences")}
            logged |= {key: logged.get(key, 0) + own[key] for key in OBJECTIVE_KEYS if key in own}
        total = torch.stack(losses).sum()
        return total, 1, {"loss": total.detach(), **logged, "sample_size": 1}

    @staticmethod
    def loss_by_objective(batch: Mapping[str, Any], positions: Tensor, sums: LossSums) -> dict[str, Tensor]:
        """Sums of `conf`-weighted negative log-likelihoods and of weights for each of `OBJECTIVES`.

        Args:
            batch: has `objective` (B,), the number of each row's objective.
            positions: (N,) target tokens that count.
        """
        kept = slice(None) if sums.kept is None else sums.kept
        of_rows = batch["objective"], batch["conf"]
        objective, weights = (token_weights(x, batch["target"], positions)[kept] for x in of_rows)
        values = torch.stack([sums.token_nll, weights.to(sums.token_nll)])  # (2, n)
        totals = values.new_zeros(2, len(OBJECTIVES)).index_add_(1, objective, values)
        return dict(zip(OBJECTIVE_KEYS, totals.flatten(), strict=True))

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
        for part in ("_v1", "_v2"):
            if (tokens := _total(logging_outputs, f"sample_size{part}")) > 0:
                metrics.log_scalar(f"loss{part}", _total(logging_outputs, f"loss{part}") / tokens, tokens, round=3)
        for objective in OBJECTIVES:
            if (weight := _total(logging_outputs, f"weight_{objective}")) > 0:
                mean = _total(logging_outputs, f"nll_{objective}") / weight
                metrics.log_scalar(f"nll_{objective}", mean, weight, round=3)
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


def constraint_masks(batch: Mapping[str, Any], positions: Tensor, vocab_size: int) -> Tensor | None:
    """Which ids the target positions (N,) of the flattened (B, T) allow, (N, V) bool; None if nothing is constrained.

    Reads dense `constraint_masks` (B, T, V), or the pairs `constraint_rows`, `constraint_ids` (E,): position b * T + t
    of the target allows the id. A position without pairs allows nothing, which only padding may.
    """
    if batch.get("constraint_rows") is None:
        dense = batch.get("constraint_masks")
        return None if dense is None else take_tokens(dense, positions)
    row_of = positions.new_full((batch["target"].numel(),), -1)
    row_of[positions] = torch.arange(len(positions), device=positions.device)
    rows = row_of[batch["constraint_rows"]]
    masks = torch.zeros(len(positions), vocab_size, dtype=torch.bool, device=positions.device)
    masks[rows[rows >= 0], batch["constraint_ids"][rows >= 0]] = True
    return masks


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
