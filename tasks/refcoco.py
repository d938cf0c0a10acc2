"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task

from data.boxes import box_hits
from data.refcoco import RefcocoData, predicted_boxes
from data.tasks import TASKS
from metrics.sums import Metric
from models.answers import box_options
from models.generation import GenerationConfig, generate, require_hypotheses
from models.ofa import OFA
from tasks.base import Evaluation, OFATask, encoder_inputs, generation_confidence
from utils.predictions import Record

logger = logging.getLogger(__name__)


@dataclass
class RefcocoConfig(RefcocoData, FairseqDataclass):
    """Options of referring expressions."""

    eval_acc: bool = field(default=False, metadata={"help": "generate boxes and score them in validation (Acc@0.5)"})
    eval_args: Optional[str] = field(
        default="{}", metadata={"help": 'generation options of validation as JSON, e.g. {"beam":5,"max_len_b":4}'}
    )
    eval_print_samples: bool = field(default=False, metadata={"help": "log one box per validation batch"})
    scst: bool = field(default=False, metadata={"help": "accepted for old scripts; has no effect"})
    scst_args: str = field(default="{}", metadata={"help": "accepted for old scripts; has no effect"})


@register_task("refcoco", dataclass=RefcocoConfig)
class RefcocoTask(OFATask):
    """Finds the box a phrase describes; a hit overlaps the true box by half."""

    row = TASKS["refcoco"]
    metrics = {"score": Metric(4)}

    @cached_property
    def validation_config(self) -> GenerationConfig | None:
        """Options of --eval-args with --eval-acc."""
        return GenerationConfig.from_json(self.cfg.eval_args, "--eval-args") if self.cfg.eval_acc else None

    @property
    def generation_options(self) -> dict[str, Any]:
        """A box is four location tokens."""
        return {**super().generation_options, "min_len": 4, "max_len_a": 0.0, "max_len_b": 4}

    def evaluate(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """One box per phrase, in pixels of the original image; all beams' boxes are among the confidences."""
        found = require_hypotheses(generate(models, encoder_inputs(batch), box_options(config, self.vocab)))
        ratios = torch.stack([batch["w_resize_ratios"], batch["h_resize_ratios"]], dim=1).cpu()  # (B, 2)
        boxes = [
            predicted_boxes([hypothesis.tokens for hypothesis in hypotheses], ratio, self.vocab, self.cfg)
            for hypotheses, ratio in zip(found, ratios, strict=True)
        ]
        best = torch.stack([of_phrase[0] for of_phrase in boxes])
        references = batch["region_coords"].float().cpu()
        scored = ~references.isnan().any(dim=1)
        hits = box_hits(best, references) & scored
        records: list[Record] = [
            {"uniq_id": str(uniq_id), "box": box} for uniq_id, box in zip(batch["id"], best.tolist(), strict=True)
        ]
        confidences = [
            {
                **generation_confidence(hypotheses[0]),
                "boxes": of_phrase.tolist(),
                "scores": [h.score for h in hypotheses],
            }
            for hypotheses, of_phrase in zip(found, boxes, strict=True)
        ]
        if self.cfg.eval_print_samples:
            logger.info("example box: %s / reference: %s", best[0].tolist(), references[0].tolist())
        count = int(scored.sum())
        return Evaluation(records, [], {"score": (int(hits.sum()), count)}, confidences, len(records) - count)
