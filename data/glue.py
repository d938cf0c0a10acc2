"""Seven GLUE tasks as one table: sentences, and a label that is one word."""

import random
from dataclasses import dataclass
from typing import NamedTuple

from data.answers import AnswerConfig, check_prompt_type
from data.base import OFADataset
from data.prompts import prompt
from data.row_index import Row, Rows
from data.sample import Example
from data.tasks import TASKS
from data.text import Vocabulary
from utils.errors import quoted


class GlueTask(NamedTuple):
    """What a task's labels mean.

    Attributes:
        words: label in the file -> answer.
        metrics: what validation reports.
    """

    words: dict[str, str]
    metrics: tuple[str, ...] = ("acc",)

    @property
    def answers(self) -> list[str]:
        """The label words, each once."""
        return list(dict.fromkeys(self.words.values()))


NUMBERED = {"0": "no", "1": "yes"}
ENTAILS = {"not_entailment": "no", "entailment": "yes"}
PAIR = ("first", "second")

GLUE = {
    "cola": GlueTask(NUMBERED, ("acc", "mcc")),
    "mnli": GlueTask({"0": "maybe", "1": "yes", "2": "no"}),
    "mrpc": GlueTask(NUMBERED, ("acc", "F1")),
    "qnli": GlueTask({**NUMBERED, **ENTAILS}),
    "qqp": GlueTask(NUMBERED, ("acc", "F1")),
    "rte": GlueTask(ENTAILS),
    "sst2": GlueTask({"0": "negative", "1": "positive"}),
}


@dataclass
class GlueData(AnswerConfig):
    """Options of the rows of a GLUE task."""


class GlueDataset(OFADataset):
    """Rows of one or two sentences and a label; the label is one token, and no end of sentence is predicted."""

    config: GlueData
    left_out = 1

    def __init__(
        self, name: str, rows: Rows, vocab: Vocabulary, config: GlueData, split: str, seed: int = 1, epoch: int = 1
    ) -> None:
        self.task = GLUE[name]
        self.columns = TASKS[name].names
        self.texts = self.columns[:-1]  # the names that the prompt uses
        super().__init__(rows, vocab, config, split, seed, epoch)
        self.prompt_type = check_prompt_type(config.prompt_type)
        self.prompt = prompt(name, vocab.bpe)

    def example(self, row: Row, rng: random.Random) -> Example:
        """Sentences to judge, and the word for the label."""
        *texts, label = row
        known = not self.lacks_reference(label)
        if known and label not in self.task.words:
            raise ValueError(f"the label {quoted(label)} is not one of {', '.join(self.task.words)}")
        for name, text in zip(self.texts, texts, strict=True):
            self.check_words(text, f"{name} sentence" if name in PAIR else name)
        short = (" ".join(text.lower().split()[: self.config.max_src_length]) for text in texts)
        word = self.task.words[label] if known else self.task.answers[0]
        return Example(
            None,
            self.prompt.format(**dict(zip(self.texts, short, strict=True))),
            " " + word,
            prompt_type=self.prompt_type,
            ends=False,
            learn=known,
            extras={"ref_dict": {word: 1.0} if known else {}},
        )
