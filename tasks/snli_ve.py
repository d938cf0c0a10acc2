"""Visual entailment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task

from data.snli_ve import SnliVeData
from data.tasks import TASKS
from metrics.sums import Metric
from models.generation import GenerationConfig
from models.ofa import OFA
from tasks.answers import AnswerTask, soft_score_sums
from tasks.base import Evaluation
from utils.predictions import Record


@dataclass
class SnliVeConfig(SnliVeData, FairseqDataclass):
    """Options of visual entailment."""


@register_task("snli_ve", dataclass=SnliVeConfig)
class SnliVeTask(AnswerTask):
    """Says whether an image proves a sentence: yes, no or maybe."""

    row = TASKS["snli_ve"]
    metrics = {"snli_score": Metric(4)}

    def evaluate(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """One answer per row."""
        choices = self.choose(models, batch, config)
        records: list[Record] = [
            {"uniq_id": str(uniq_id), "answer": choice.answer}
            for uniq_id, choice in zip(batch["id"], choices, strict=True)
        ]
        score, scored = soft_score_sums(choices, batch["ref_dict"])
        confidences = [choice.confidence for choice in choices]
        return Evaluation(records, [], {"snli_score": (score, scored)}, confidences, len(records) - scored)
