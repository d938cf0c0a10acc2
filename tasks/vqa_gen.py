"""Visual question answering."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from torch import nn

from data.tsv import TsvFile
from data.vqa_gen import VqaGenData, VqaGenDataset
from models.generation import GenerationConfig
from tasks.answers import AnswerTask
from tasks.base import Evaluation
from utils.errors import UserError
from utils.metrics import Metric, vqa_soft_scores
from utils.predictions import Record


@dataclass
class VqaGenConfig(VqaGenData, FairseqDataclass):
    """Options of visual question answering."""


@register_task("vqa_gen", dataclass=VqaGenConfig)
class VqaGenTask(AnswerTask):
    """Answers in the form of the VQA server; the score is the confidence the annotators give an answer."""

    metrics = {"vqa_score": Metric(4)}
    record_fields = {"question_id": int, "answer": str}
    free_zero_shot = True

    def read_answers(self) -> list[str]:
        """The answer set; none with --unconstrained-training, whose answers are found by beam search."""
        if not self.cfg.unconstrained_training:
            return super().read_answers()
        if not self.beam_search:
            raise UserError("--unconstrained-training needs --val-inference-type beamsearch (--beam-search-vqa-eval).")
        return []

    def make_dataset(self, rows: TsvFile, split: str, epoch: int) -> VqaGenDataset:
        """Rows of id, image, question, answers and objects."""
        return VqaGenDataset(rows, self.vocab, self.cfg, split, epoch=epoch, answers=self.answers)

    def evaluate(self, models: Sequence[nn.Module], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """One answer per question."""
        choices = self.choose(models, batch, config)
        ids = [str(number) if config.zero_shot else question_id(number) for number in batch["id"]]
        records: list[Record] = [
            {"question_id": number, "answer": choice.answer} for number, choice in zip(ids, choices, strict=True)
        ]
        scores = vqa_soft_scores([choice.answer for choice in choices], batch["ref_dict"])
        sums = {"vqa_score": (sum(scores), len(scores))}
        return Evaluation(records, [], sums, [choice.confidence for choice in choices])


def question_id(text: str) -> int:
    """The number the VQA server wants; UserError for an id that is none."""
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"The question id {str(text)!r} is not a whole number, which the VQA server needs.") from error
