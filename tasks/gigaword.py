"""Summarization (Gigaword)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task

from data.gigaword import GigawordData
from data.tasks import TASKS
from metrics.rouge import rouge_sums
from metrics.sums import Metric
from models.answers import summary_text
from models.generation import GenerationConfig, generate, require_hypotheses
from models.ofa import OFA
from tasks.base import Evaluation, OFATask, encoder_inputs, generation_confidence
from utils.predictions import Record

logger = logging.getLogger(__name__)

ROUGE = [f"rouge{kind}_{part}" for part in ("recall", "f1") for kind in ("1", "2", "L")]


@dataclass
class GigawordConfig(GigawordData, FairseqDataclass):
    """Options of summarization."""

    eval_rouge: bool = field(default=False, metadata={"help": "generate and score summaries in validation (ROUGE)"})
    eval_args: Optional[str] = field(
        default="{}", metadata={"help": 'generation options of validation as JSON, e.g. {"beam":6,"lenpen":0.7}'}
    )
    eval_detok: str = field(default="space", metadata={"help": "accepted for old scripts; has no effect"})
    eval_detok_args: Optional[str] = field(default="{}", metadata={"help": "accepted for old scripts; has no effect"})
    eval_print_samples: bool = field(default=False, metadata={"help": "log one summary per validation batch"})


@register_task("gigaword", dataclass=GigawordConfig)
class GigawordTask(OFATask):
    """Summarizes sentences by beam search."""

    row = TASKS["gigaword"]
    metrics = {name: Metric(4) for name in ROUGE}

    @cached_property
    def validation_config(self) -> GenerationConfig | None:
        """Options of --eval-args with --eval-rouge."""
        return GenerationConfig.from_json(self.cfg.eval_args, "--eval-args") if self.cfg.eval_rouge else None

    def evaluate(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """One summary per article, in the tokenization of the dataset."""
        found = require_hypotheses(generate(models, encoder_inputs(batch), config))
        best = [hypotheses[0] for hypotheses in found]
        references = batch["target_strs"]
        # Only validation during training, which --eval-rouge belongs to, respaces unknown words.
        summaries = [summary_text(h, self.vocab, config is self.validation_config) for h in best]
        records: list[Record] = [{"hyp": hyp, "ref": ref} for hyp, ref in zip(summaries, references, strict=True)]
        if self.cfg.eval_print_samples:
            logger.info("example hypothesis: %s / reference: %s", summaries[0], references[0])
        scored = [(hyp, ref) for hyp, ref in zip(summaries, references, strict=True) if ref.strip()]
        sums = rouge_sums([hyp for hyp, _ in scored], [ref for _, ref in scored])
        confidences = [generation_confidence(hypothesis) for hypothesis in best]
        return Evaluation(records, [], dict(sums), confidences, len(records) - len(scored))
