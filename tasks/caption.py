"""Image captioning."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Optional

from fairseq.tasks import register_task

from data.caption import split_captions
from data.tasks import TASKS
from metrics.cider import CiderD
from metrics.coco_caption import score_captions
from metrics.sums import Metric, bleu, bleu_sums
from models.answers import caption_text
from models.generation import GenerationConfig, generate, require_hypotheses
from models.ofa import OFA
from tasks.base import Evaluation, OFATask, OFATaskConfig, encoder_inputs, generation_confidence
from utils.predictions import Record, leaderboard_id

logger = logging.getLogger(__name__)


@dataclass
class CaptionConfig(OFATaskConfig):
    """Options of captioning."""

    eval_bleu: bool = field(default=False, metadata={"help": "generate and score captions in validation (BLEU)"})
    eval_cider: bool = field(default=False, metadata={"help": "generate and score captions in validation (CIDEr-D)"})
    eval_args: Optional[str] = field(
        default="{}", metadata={"help": 'generation options of validation as JSON, e.g. {"beam":5,"max_len_b":16}'}
    )
    eval_print_samples: bool = field(default=False, metadata={"help": "log one caption per validation batch"})
    eval_cider_cached_tokens: Optional[str] = field(
        default=None,
        metadata={"help": "document frequencies for CIDEr-D (pickle; default: counted in the validation file)"},
    )
    scst: bool = field(default=False, metadata={"help": "self-critical training: keep all captions of an image"})
    scst_args: str = field(default="{}", metadata={"help": "generation options of self-critical training as JSON"})


@register_task("caption", dataclass=CaptionConfig)
class CaptionTask(OFATask):
    """Captions by beam search; records in the form of the COCO caption server."""

    row = TASKS["caption"]
    metrics = {"cider": Metric(3), "bleu": Metric(2, bleu)}

    @property
    def dataset_options(self) -> dict[str, Any]:
        """Whether all captions of an image are kept."""
        return {"scst": self.cfg.scst}

    @cached_property
    def validation_config(self) -> GenerationConfig | None:
        """Options of --eval-args with --eval-cider or --eval-bleu."""
        scored = self.cfg.eval_cider or self.cfg.eval_bleu
        return GenerationConfig.from_json(self.cfg.eval_args, "--eval-args") if scored else None

    @cached_property
    def cider(self) -> CiderD:
        """Scorer with the given document frequencies, or those of the validation file."""
        if self.cfg.eval_cider_cached_tokens:
            return CiderD.from_pickle(self.cfg.eval_cider_cached_tokens)
        return CiderD.from_references(self._captions(self.paths[-1:]))

    @cached_property
    def scst_config(self) -> GenerationConfig | None:
        """How self-critical training samples: the options of --scst-args with --scst."""
        if not self.cfg.scst:
            return None
        return GenerationConfig.from_json(self.cfg.scst_args, "--scst-args", constraint_range=self.cfg.constraint_range)

    def training_references(self) -> Iterator[list[str]]:
        """Captions of each row of the training files."""
        return self._captions(self.paths[:-1] or self.paths)

    def _captions(self, paths: Sequence[str]) -> Iterator[list[str]]:
        for path in paths:
            rows = self.open_rows(path, "train", names=("caption",))
            yield from (split_captions(rows[i][0]) for i in range(len(rows)))

    def evaluate(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """One caption per image: the best hypothesis without punctuation."""
        found = require_hypotheses(generate(models, encoder_inputs(batch), config))
        best = [hypotheses[0] for hypotheses in found]
        captions = [caption_text(hypothesis, self.vocab) for hypothesis in best]
        records: list[Record] = [
            {"image_id": leaderboard_id(str(image_id)), "caption": caption}
            for image_id, caption in zip(batch["id"], captions, strict=True)
        ]
        references = batch["references"]
        if self.cfg.eval_print_samples:
            logger.info("example hypothesis: %s / references: %s", captions[0], " && ".join(references[0]))
        confidences = [generation_confidence(hypothesis) for hypothesis in best]
        unscored = sum(not of_image for of_image in references)
        return Evaluation(records, references, self._sums(captions, references), confidences, unscored)

    def _sums(self, captions: Sequence[str], references: Sequence[list[str]]) -> dict[str, tuple[float, ...]]:
        """Sums of the metrics that were asked for, over the captions of images that have references."""
        scored = [(caption, of_image) for caption, of_image in zip(captions, references, strict=True) if of_image]
        if not scored:
            return {}
        texts, of_images = [caption for caption, _ in scored], [of_image for _, of_image in scored]
        sums: dict[str, tuple[float, ...]] = {}
        if self.cfg.eval_bleu:
            sums["bleu"] = bleu_sums(texts, of_images)
        if self.cfg.eval_cider:
            scores = self.cider.score(texts, of_images)[1]
            sums["cider"] = (float(scores.sum()), float(len(scores)))
        return sums

    def corpus_scores(self, records: list[Record], references: list[list[str]]) -> dict[str, float]:
        """The COCO caption scores against the captions of the data file."""
        annotations = [
            {"id": number, "image_id": record["image_id"], "caption": caption}
            for number, (record, caption) in enumerate(
                (record, caption) for record, captions in zip(records, references, strict=True) for caption in captions
            )
        ]
        return score_captions(records, {"annotations": annotations})
