"""What evaluation has found, batch by batch; a stopped run leaves it in files, and the next one goes on from there."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tasks.base import Evaluation
from utils.distributed import gather_objects, is_main
from utils.part_files import OtherRunError, PartFiles, damaged, identity
from utils.predictions import Record

logger = logging.getLogger("evaluate")
FREE = ("skip_bad_rows", "valid_batch_size")  # options of tasks that change no answer


@dataclass
class Share:
    """What a process has found.

    Attributes:
        read: numbers of the rows that it and the runs before it have read. answers: (row, record, references).
        sums: metric -> the sums of each batch. skipped: messages of bad rows. unscored: rows without a reference.
    """

    read: set[int] = field(default_factory=set)
    answers: list[tuple[int, Record, list[str]]] = field(default_factory=list)
    sums: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    unscored: int = 0

    def add(self, found: Mapping[str, Any]) -> None:
        """Adds what `found_in` says of a batch, unless a row of it is known already."""
        if not self.read.isdisjoint(found["read"]):
            return
        self.read.update(found["read"])
        self.answers += [(row, record, references) for row, record, references in found["answers"]]
        for name, values in found["sums"].items():
            self.sums.setdefault(name, []).append(tuple(values))
        self.skipped += found["skipped"]
        self.unscored += found["unscored"]

    def totals(self) -> dict[str, list[float]]:
        """Metric -> its sums over all processes, the same in whatever order batches were added."""
        batches: dict[str, list[tuple[float, ...]]] = {}
        for share in gather_objects(self.sums):
            for name, values in share.items():
                batches.setdefault(name, []).extend(values)
        return {name: [math.fsum(column) for column in zip(*values, strict=True)] for name, values in batches.items()}


def found_in(rows: Any, batch: Mapping[str, Any], result: Evaluation | None, with_scores: bool) -> dict[str, Any]:
    """What is found in a batch of planned rows (B,), as JSON can hold it; result: None if no row of it is readable."""
    found: dict[str, Any] = {"read": [int(row) for row in rows], "skipped": batch.get("skipped", [])}
    if result is None:
        return {**found, "answers": [], "sums": {}, "unscored": 0}
    if with_scores:
        for record, confidence in zip(result.records, result.confidences, strict=True):
            record.update(confidence)
    references = result.references or [[]] * len(result.records)
    answered = (int(row) for row in batch["rows"])
    found["answers"] = list(zip(answered, result.records, references, strict=True))
    sums = {name: [float(value) for value in values] for name, values in result.sums.items()}
    return {**found, "sums": sums, "unscored": result.unscored}


def run_of(cfg: DictConfig, task: DictConfig) -> str:
    """What decides about the answers of an evaluation: options, checkpoints and files, and when these changed."""
    options: dict[str, Any] = {
        "generation": OmegaConf.to_container(cfg.generation),
        "evaluation": OmegaConf.to_container(cfg.evaluation),
        "common": [cfg.common.fp16, cfg.common.bf16, cfg.common.seed],
        "overrides": cfg.common_eval.model_overrides,
        "task": OmegaConf.to_container(task),
    }
    for name in FREE:
        options["task"].pop(name, None)
    texts = [value for value in task.values() if isinstance(value, str)]
    files = [name for text in [cfg.common_eval.path, *texts] for name in text.replace(":", ",").split(",")]
    return json.dumps([options, identity(files)], sort_keys=True, default=str)


def resume(parts: PartFiles, rows: int) -> Share:
    """What a stopped run of the same command has found: rank 0 keeps it, the others only the numbers of its rows.

    Args:
        rows: how many the data file has.
    Raises:
        UserError: a part is damaged.
    """
    share, other = Share(), False
    try:
        for path in parts.paths():
            for _, found in parts.lines(path):
                try:
                    answered = [row for row, _, _ in found["answers"]]
                    if not {*answered} <= {*found["read"]} <= {*range(rows)}:
                        raise ValueError("it has other rows than the data file")
                    share.add(found)
                except (TypeError, KeyError, AttributeError, ValueError) as error:
                    raise damaged(path) from error
    except OtherRunError:
        share, other = Share(), True
    gather_objects(None)  # all have read before one of them writes
    if is_main():
        if other:
            logger.info("%s was left by an evaluation with other files or options: it is deleted.", parts.folder)
            parts.remove()
        if share.read:
            logger.info("%d rows were read by a run that was stopped: it goes on with the others.", len(share.read))
    gather_objects(None)
    return share if is_main() else Share(read=share.read)
