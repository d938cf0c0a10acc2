"""Updates whose loss or gradient is not finite: they are skipped, their batches named, and too many end the run.

One such update would turn every weight, the optimizer's moments and the moving average into NaN. A loss scale that was
too large (float16) is not such an update: loss and weights are fine then, and the scale is lowered.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.logging import metrics
from torch import Tensor, nn

from utils.distributed import gather_objects, is_main
from utils.errors import UserError

logger = logging.getLogger(__name__)
FILE = "nonfinite_batches.jsonl"
SHOWN = 8  # ids in a log line


class NonFiniteUpdate(Exception):
    """The update at hand must not be done; `args[0]` says what is not finite. Raised by all processes or none."""


class NonFiniteGuard:
    """Watches the losses of an update, and undoes what the forward passes of a bad one changed.

    Args:
        criterion: its calls are watched.
        model: its running statistics are what a forward pass changes.
        folder: where `nonfinite_batches.jsonl` grows, a line per skipped update.
        limit: skipped updates in a row that end the run.
    """

    def __init__(self, criterion: nn.Module, model: nn.Module, folder: str, limit: int) -> None:
        if limit < 1:
            raise UserError(f"--max-nonfinite-updates {limit}: choose at least 1.")
        self.file, self.limit = Path(folder) / FILE, limit
        self.in_a_row = self.skipped = 0
        self._finite: list[Tensor] = []  # per micro-batch
        norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase))
        self._statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self._before = [buffer.clone() for buffer in self._statistics]
        criterion.register_forward_hook(self._watch)

    def _watch(self, criterion: nn.Module, _: Any, output: tuple[Tensor, Any, Any]) -> None:
        if torch.is_grad_enabled():  # not in validation
            self._finite.append(output[0].detach().isfinite())

    def begin(self) -> None:
        """A new update begins."""
        self._finite.clear()
        _copy(self._statistics, self._before)

    def bad_losses(self) -> Tensor | int:
        """How many of this process's losses are not finite, on their device."""
        return torch.stack(self._finite).logical_not().sum() if self._finite else 0

    def undo(self) -> None:
        """Gives the model the running statistics that it had before the update's forward passes."""
        _copy(self._before, self._statistics)

    def done(self) -> None:
        """The update was done."""
        self.in_a_row = 0

    def skip(self, what: str, batches: Sequence[Any], updates: int) -> None:
        """Undoes what the forward passes changed and names the batches.

        Args:
            what: "loss" or "gradient".
            batches: the update's micro-batches of this process.
            updates: number of updates done so far.

        Raises UserError when it was one too many in a row.
        """
        self.undo()
        self.in_a_row += 1
        self.skipped += 1
        if what == "loss" and len(batches) == len(self._finite):  # a gradient's sum does not tell whose it was
            batches = [batch for batch, finite in zip(batches, self._finite, strict=True) if not finite]
        ids = [one for share in gather_objects(list(_ids(batches))) for one in share]
        if is_main():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"after_updates": updates, "not_finite": what, "ids": ids}) + "\n")
            shown = ", ".join(map(str, ids[:SHOWN])) + (" ..." if len(ids) > SHOWN else "")
            logger.warning(
                "The %s after update %d is not finite: update skipped (%d in a row). Ids, also in %s: %s",
                what, updates, self.in_a_row, self.file, shown,
            )  # fmt: skip
        metrics.log_scalar("nonfinite_updates", self.skipped, weight=0)
        if self.in_a_row >= self.limit:
            raise UserError(
                f"{self.in_a_row} updates in a row had a loss or gradient that is not finite: look at the rows that "
                f"{self.file} names, lower --lr, or raise --max-nonfinite-updates."
            )


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        with torch.no_grad():
            torch._foreach_copy_(target, source)


def _ids(batches: Iterable[Any]) -> Iterable[Any]:
    """Plain ids, or row numbers, of all samples of batches."""
    for batch in batches:
        for part in batch if isinstance(batch, list) else [batch or {}]:
            ids = part.get("id", part.get("rows", ()))
            yield from ids.tolist() if hasattr(ids, "tolist") else ids
