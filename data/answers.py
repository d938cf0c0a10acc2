"""Closed answer sets: where the answers come from, and what tasks that choose among them have in common."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from data.base import DataConfig
from utils.errors import UserError
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
        default=None, metadata={"help": "the answers: pickle or JSON of such a dict, or a text file with one a line"}
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

    Raises UserError: a missing or unreadable file, no answers, or repeated ones.
    """
    path = config.ans2label_file
    if path:
        answers, where = _read_file(Path(path)), f"--ans2label-file {path}"
    else:
        answers, where = _parse_json(config.ans2label_dict or "", "--ans2label-dict"), "--ans2label-dict"
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{where} must hold answers as texts: a dict with one key per answer, or one answer a line.")
    if len(set(answers)) < len(answers):
        twice = next(answer for number, answer in enumerate(answers) if answer in answers[:number])
        raise UserError(f"{where} holds the answer {twice!r} twice: remove one.")
    return answers


def check_prompt_type(prompt_type: str | None) -> str:
    """The prompt type; "none" for no choice, UserError for a wrong one."""
    prompt_type = prompt_type or "none"
    if prompt_type not in PROMPT_TYPES:
        raise UserError(f"--prompt-type {prompt_type} is unknown: choose {', '.join(PROMPT_TYPES)}.")
    return prompt_type


def _read_file(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"--ans2label-file {path} cannot be read ({error.strerror}): name the answer list.") from error
    if data[:1] == b"\x80" or path.suffix == ".pkl":
        try:
            return list(load_plain_pickle(io.BytesIO(data)))
        except Exception as error:  # a damaged pickle raises anything
            raise UserError(
                f"--ans2label-file {path} is not a pickled dict of answers ({error}): make it anew."
            ) from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--ans2label-file {path} is neither a pickle nor UTF-8 text.") from error
    if text.lstrip()[:1] in ("{", "["):
        return _parse_json(text, f"--ans2label-file {path}")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _parse_json(text: str, where: str) -> list[str]:
    try:
        return list(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(f"{where} is not JSON ({error}): write answers as keys of an object.") from error
