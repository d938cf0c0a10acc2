"""Image classification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task

from data.image_classify import ImageClassifyData
from data.tasks import TASKS
from metrics.sums import Metric
from models.generation import GenerationConfig
from models.ofa import OFA
from tasks.answers import AnswerTask, soft_score_sums
from tasks.base import Evaluation
from utils.predictions import Record


@dataclass
class ImageClassifyConfig(ImageClassifyData, FairseqDataclass):
    """Options of image classification."""


@register_task("image_classify", dataclass=ImageClassifyConfig)
class ImageClassifyTask(AnswerTask):
    """Names the class of an image, the best of all names."""

    row = TASKS["image_classify"]
    metrics = {"score": Metric(3)}

    def evaluate(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """One class name per image."""
        choices = self.choose(models, batch, config)
        records: list[Record] = [
            {"uniq_id": int(row), "answer": choice.answer} for row, choice in zip(batch["rows"], choices, strict=True)
        ]
        score, scored = soft_score_sums(choices, batch["ref_dict"])
        confidences = [choice.confidence for choice in choices]
        return Evaluation(records, [], {"score": (score, scored)}, confidences, len(records) - scored)
