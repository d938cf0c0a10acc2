"""Visual question answering."""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from data.answers import AnswerConfig, check_prompt_type
from data.base import OFADataset
from data.images import image_file
from data.prompts import prompt
from data.row_index import Row, Rows
from data.sample import Example
from data.tasks import TASKS
from data.text import Vocabulary, normalize_question
from data.tsv import plain_number
from utils.constants import SEPARATOR
from utils.errors import quoted

CONFIDENCE_MARK = "|!+"


@dataclass
class VqaGenData(AnswerConfig):
    """Options of the rows of visual question answering."""

    max_object_length: int = field(default=30, metadata={"help": "number of object names kept with --add-object"})
    add_object: bool = field(default=False, metadata={"help": "append the names of detected objects to the question"})
    unconstrained_training: bool = field(
        default=False, metadata={"help": "no answer set in training; needs --val-inference-type=beamsearch"}
    )


def parse_answers(text: str) -> dict[str, float]:
    """Answers with their confidences, of `confidence|!+answer` items joined by `&&`.

    Raises ValueError for anything else, and for a confidence outside (0, 1]: it weights the loss of the row.
    """
    answers: dict[str, float] = {}
    for item in text.split(SEPARATOR):
        number, mark, answer = item.partition(CONFIDENCE_MARK)
        try:
            confidence = float(plain_number(number))
        except ValueError:
            mark = ""
        if not mark:
            raise ValueError(f"the answer column needs confidence{CONFIDENCE_MARK}answer items, not {quoted(item)}")
        if not 0 < confidence <= 1:
            raise ValueError(f"the confidence {quoted(number)} is not above 0 and at most 1")
        answers[answer] = confidence
    return answers


def join_answers(answers: Mapping[str, float]) -> str:
    """The column that `parse_answers` reads."""
    return SEPARATOR.join(f"{confidence}{CONFIDENCE_MARK}{answer}" for answer, confidence in answers.items())


def source_text(question: str, objects: str | None, config: VqaGenData, bpe: str) -> str:
    """What the encoder reads: the question and, unless None, the names of objects joined by `&&`."""
    question = normalize_question(question, config.max_src_length)
    question += "" if question.endswith("?") else "?"
    if objects is None:
        return prompt("vqa_gen", bpe).format(question=question)
    names = " ".join(objects.strip().split(SEPARATOR)[: config.max_object_length])
    return prompt("vqa_gen objects", bpe).format(question=question, objects=names)


class VqaGenDataset(OFADataset):
    """Rows of id, image, question, answers with confidences and object names; a sixth column is not used.

    The answer to learn is the one of largest confidence, which weights the row's loss. Where an answer set is given,
    training refuses rows whose answer is not in it; evaluation takes their loss as nothing.
    """

    columns = TASKS["vqa_gen"].names
    unused_columns = 1
    left_out = 2
    config: VqaGenData

    def __init__(
        self,
        rows: Rows,
        vocab: Vocabulary,
        config: VqaGenData,
        split: str,
        seed: int = 1,
        epoch: int = 1,
        answers: Collection[str] = (),
    ) -> None:
        super().__init__(rows, vocab, config, split, seed, epoch)
        self.prompt_type = check_prompt_type(config.prompt_type)
        self.answers = frozenset(answers)

    def example(self, row: Row, rng: random.Random) -> Example:
        """A question with its objects, and the best answer."""
        uniq_id, image, question, column, objects = row[:5]
        answers = {} if self.lacks_reference(column) else parse_answers(column)
        answer = max(answers, key=lambda key: answers[key], default="")
        known = bool(answers) and (not self.answers or answer in self.answers)
        if not known and self.split == "train":
            raise ValueError(f"the answer {quoted(answer)} is not in the answer set")
        if self.strict and not answer.strip():
            raise ValueError("the answer is empty")
        self.check_words(question, "question")
        return Example(
            uniq_id,
            source_text(question, objects if self.config.add_object else None, self.config, self.vocab.bpe),
            " " + answer,
            image_file(image),
            prompt_type=self.prompt_type,
            max_target_tokens=self.config.max_tgt_length,
            learn=known,
            extras={"conf": torch.tensor(answers.get(answer, 0.0)), "ref_dict": answers},
        )
