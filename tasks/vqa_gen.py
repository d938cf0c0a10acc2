"""Visual question answering."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task

from data.tasks import TASKS
from data.vqa_gen import VqaGenData
from metrics.sums import Metric
from models.generation import GenerationConfig
from models.ofa import OFA
from tasks.answers import AnswerTask, soft_score_sums
from tasks.base import Evaluation
from utils.errors import UserError
from utils.predictions import Record, leaderboard_id


@dataclass
class VqaGenConfig(VqaGenData, FairseqDataclass):
    """Options of visual question answering."""


@register_task("vqa_gen", dataclass=VqaGenConfig)
class VqaGenTask(AnswerTask):
    """Answers in the form of the VQA server; the score is the confidence the annotators give an answer."""

    row = TASKS["vqa_gen"]
    metrics = {"vqa_score": Metric(4)}
    free_zero_shot = True

    def read_answers(self) -> list[str]:
        """The answer set; none with --unconstrained-training, whose answers are found by beam search."""
        if not self.cfg.unconstrained_training:
            return super().read_answers()
        if not self.beam_search:
            raise UserError("--unconstrained-training needs --val-inference-type beamsearch (--beam-search-vqa-eval).")
        return []

    def evaluate(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """One answer per question."""
        choices = self.choose(models, batch, config)
        ids = [str(text) if config.zero_shot else leaderboard_id(str(text)) for text in batch["id"]]
        records: list[Record] = [
            {"question_id": number, "answer": choice.answer} for number, choice in zip(ids, choices, strict=True)
        ]
        score, scored = soft_score_sums(choices, batch["ref_dict"])
        confidences = [choice.confidence for choice in choices]
        return Evaluation(records, [], {"vqa_score": (score, scored)}, confidences, len(records) - scored)
