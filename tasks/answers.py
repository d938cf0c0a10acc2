"""What tasks that answer from a closed set share: the trie, exact ranking, beam search as the other way."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from data.answers import check_prompt_type, read_answers
from data.base import OFADataset
from data.collate import prefix_tokens
from data.row_index import Rows
from data.text import Vocabulary
from metrics.sums import vqa_soft_scores
from models.answers import free_text, ranked_names
from models.generation import CandidateTrie, GenerationConfig, generate, rank_candidates, require_hypotheses
from models.ofa import OFA
from tasks.base import OFATask, encoder_inputs, generation_confidence
from utils.errors import UserError

INFERENCE_TYPES = ("allcand", "beamsearch")


class Choice(NamedTuple):
    """The answer to one question, and how sure the model is."""

    answer: str
    confidence: dict[str, Any]


def soft_score_sums(choices: Sequence[Choice], references: Sequence[Mapping[str, float]]) -> tuple[float, int]:
    """Sum of the answers' scores, and the number of them that have a reference to be scored against."""
    scores = vqa_soft_scores([choice.answer for choice in choices], references)
    return sum(scores), sum(map(bool, references))


class AnswerTask(OFATask):
    """Answers are the best candidate by exact ranking, or what beam search over the candidates finds.

    Attributes:
        answers: the candidates. trie: their tokens; None when any text may be an answer.
        free_zero_shot: with --zero-shot beam search answers, and any text may be the answer.
    """

    free_zero_shot = False

    def __init__(self, cfg: Any, vocab: Vocabulary) -> None:
        super().__init__(cfg, vocab)
        if cfg.val_inference_type not in INFERENCE_TYPES:
            raise UserError(
                f"--val-inference-type {cfg.val_inference_type} is unknown: choose {' or '.join(INFERENCE_TYPES)}."
            )
        if self.beam_search and check_prompt_type(cfg.prompt_type) == "src":
            raise UserError("--prompt-type src leaves beam search nothing to generate: use prev_output.")
        self.answers = self.read_answers()
        self.trie = CandidateTrie.from_texts(self.answers, vocab.encode) if self.answers else None
        if self.trie is None and not self.beam_search:
            raise UserError(
                "There is no answer set to rank: pass --ans2label-file, or --val-inference-type beamsearch."
            )

    def read_answers(self) -> list[str]:
        """The candidates in order; none when any text may be an answer."""
        return read_answers(self.cfg)

    @property
    def beam_search(self) -> bool:
        """Whether beam search answers."""
        return self.cfg.val_inference_type == "beamsearch"

    @cached_property
    def validation_config(self) -> GenerationConfig:
        """Options of --eval-args, which count for beam search."""
        return GenerationConfig.from_json(self.cfg.eval_args, "--eval-args")

    def build_dataset(self, rows: Rows, split: str, epoch: int) -> OFADataset:
        """The task's dataset, with the losses of its rows restricted to the candidates."""
        dataset = super().build_dataset(rows, split, epoch)
        dataset.allowed_after = None if self.trie is None else self.trie.children
        return dataset

    @property
    def dataset_options(self) -> dict[str, Any]:
        """The candidates, for a dataset that checks its answers."""
        return {"answers": self.answers} if self.row.checks_answers else {}

    def searches(self, zero_shot: bool) -> bool:
        """Whether beam search answers."""
        return self.trie is None or self.beam_search or (zero_shot and self.free_zero_shot)

    def choose(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> list[Choice]:
        """An answer to each question of a batch."""
        if self.trie is None or self.searches(config.zero_shot):
            return self._search(models, batch, config)
        encoded = [model.encode(**encoder_inputs(batch)) for model in models]
        rows = self.cfg.valid_batch_size * len(batch["rows"])
        ranking = rank_candidates(models, encoded, self.trie, batch.get("decoder_prompts"), max_rows=rows)
        best = [names[0] for names in ranked_names(ranking, self.answers)]
        return [Choice(answer, {"probability": probability}) for answer, probability in best]

    def _search(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> list[Choice]:
        prefix = None
        if "decoder_prompts" in batch and not config.zero_shot:
            prefix = prefix_tokens(batch["decoder_prompts"], self.vocab.pad)
        trie = None if config.zero_shot else self.trie
        found = require_hypotheses(generate(models, encoder_inputs(batch), config, trie, prefix))
        choices = []
        for row, hypotheses in enumerate(found):
            best, given = hypotheses[0], 0 if prefix is None else int(prefix[row].ne(self.vocab.pad).sum())
            choices.append(Choice(free_text(best, self.vocab, given), generation_confidence(best, given)))
        return choices
