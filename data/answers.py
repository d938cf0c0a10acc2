"""Closed answer sets: where the answers come from, and what tasks that choose among them have in common."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from data.base import DataConfig
from utils.constants import UNK
from utils.errors import UserError, quoted
from utils.files import RepeatedKeyError, decode_text, parse_json, read_file, text_lines, whole_characters
from utils.plain_pickle import load_plain_pickle

PROMPT_TYPES = ("none", "src", "prev_output")


@dataclass
class AnswerConfig(DataConfig):
    """Options of tasks that answer from a closed set."""

    ans2label_dict: Optional[str] = field(
        default='{"no": 0, "yes":1}',
        metadata={"help": "the answers, as the keys of a JSON object; the order counts, the values do not"},
    )
    ans2label_file: Optional[str] = field(
        default=None, metadata={"help": "the answers: pickle or JSON of such a dict, or a text file with one per line"}
    )
    valid_batch_size: int = field(
        default=20, metadata={"help": "decoder rows per sample computed at once when all answers compete"}
    )
    prompt_type: Optional[str] = field(
        default="none", metadata={"help": "what the decoder is fed before the answer: none, src or prev_output"}
    )
    val_inference_type: Optional[str] = field(
        default="allcand",
        metadata={"help": "allcand: the exact best of all answers; beamsearch: beam search with --eval-args"},
    )
    uses_ema: bool = field(default=False, metadata={"help": "validate with averaged weights; needs --store-ema"})
    eval_args: Optional[str] = field(
        default='{"beam":5,"unnormalized":true,"temperature":1.0}',
        metadata={"help": "generation options of validation by beam search, as JSON"},
    )


def read_answers(config: AnswerConfig) -> list[str]:
    """The answers of a configuration, in the order of their numbers.

    Raises UserError: a missing or unreadable file, no answers, blank or repeated ones, half characters.
    """
    path = config.ans2label_file
    if path:
        answers, where = _read_file(Path(path)), f"The answer file {path}"
    else:
        answers, where = _parse_json(config.ans2label_dict or "", "--ans2label-dict"), "--ans2label-dict"
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{where} must hold answers as texts: a dict with one key per answer, or one answer per line.")
    if blank := [number for number, answer in enumerate(answers, 1) if not answer.strip()]:
        raise UserError(f"{where} holds a blank answer (number {blank[0]}): remove it.")
    if half := [answer for answer in answers if not whole_characters(answer)]:
        raise UserError(f"{where} holds half of a surrogate pair in {quoted(half[0])}: correct the answer.")
    if twice := [answer for answer, count in Counter(map(str.strip, answers)).items() if count > 1]:
        raise UserError(f"{where} holds the answer {quoted(twice[0])} twice: remove one.")
    return [str(answer) for answer in answers]


def encode_answers(texts: Iterable[str], encode: Callable[[str], Sequence[int]], unk: int = UNK) -> list[Sequence[int]]:
    """Ids of answers, each written after a blank; UserError for one that the vocabulary cannot write."""
    ids = []
    for index, text in enumerate(texts):
        ids.append(encode(f" {text}"))
        if unk in ids[-1]:
            raise UserError(
                f"Answer {index}, {quoted(text)}, holds a token outside the vocabulary: reword or remove it."
            )
    return ids


def check_prompt_type(prompt_type: str | None) -> str:
    """The prompt type; "none" for no choice, UserError for a wrong one."""
    prompt_type = prompt_type or "none"
    if prompt_type not in PROMPT_TYPES:
        raise UserError(f"--prompt-type {prompt_type} is unknown: choose {', '.join(PROMPT_TYPES)}.")
    return prompt_type


def _read_file(path: Path) -> list[Any]:
    where = f"The answer file {path}"
    try:
        data = read_file(path)
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}): name the list of answers.") from error
    if data[:1] == b"\x80" or path.suffix == ".pkl":
        try:
            content = load_plain_pickle(io.BytesIO(data))
        except Exception as error:  # a damaged pickle raises anything
            raise UserError(f"{where} is not a pickled dict of answers ({error}): make it again.") from error
        return _answers_of(content, where)
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is neither a pickle nor UTF-8 text: save it as UTF-8.") from error
    if text.lstrip()[:1] in ("{", "["):
        return _parse_json(text, where)
    lines = [line.strip() for line in text_lines(text) if line.strip()]
    if path.suffix.lower() == ".csv":
        raise UserError(f"{where} is a table: write one answer per line, or a JSON list, to another file.")
    if lines and all(len(line) > 1 and line[0] == line[-1] == '"' for line in lines):
        raise UserError(
            f"{where} has quotes around every answer: write one answer per line without quotes, or a JSON list."
        )
    return lines


def _parse_json(text: str, where: str) -> list[Any]:
    try:
        content = parse_json(text)
    except RepeatedKeyError as error:
        raise UserError(f"{where} cannot be used: {error}; remove one.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): write answers as keys of an object.") from error
    return _answers_of(content, where)


def _answers_of(content: Any, where: str) -> list[Any]:
    """The answers in a list or in the keys of a dict; of a dict label -> answer its values, in order of the labels."""
    if isinstance(content, list | tuple):
        return list(content)
    if not isinstance(content, dict):
        raise UserError(f"{where} holds a {type(content).__name__}: write answers as keys of an object or as a list.")
    if any(type(value) in (list, tuple, dict) for value in content.values()):
        raise UserError(f"{where} has lists or objects behind its keys: write each answer as a key, with its label.")
    labels, answers = list(content), list(content.values())
    if not content or not all(_is_label(key) for key in labels) or not all(isinstance(text, str) for text in answers):
        return labels
    if all(map(_is_label, answers)):  # texts of numbers on both sides
        return labels
    numbers = [int(label) for label in labels]
    if sorted(numbers) not in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
        raise UserError(
            f"{where} holds labels as keys and answers as values, and the labels are not 0 to {len(numbers) - 1}: "
            'write it the other way round, {"answer": label}.'
        )
    return [answer for _, answer in sorted(zip(numbers, answers, strict=True))]


def _is_label(key: Any) -> bool:
    return isinstance(key, int) or (isinstance(key, str) and key.isascii() and key.isdigit())
