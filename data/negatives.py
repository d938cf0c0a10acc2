"""Wrong captions and wrong answers for image-text matching."""

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.text import normalize_caption
from data.tsv import TsvFile
from utils.errors import BadRowError, UserError, quoted
from utils.files import parse_json, read_text, text_lines

CAPTION_FILE, OBJECT_FILE, ANSWER_FILE = "all_captions.txt", "object.txt", "type2ans.json"
OTHER, HOW_MANY = "other", "how many"
SWAP_ABOVE = 0.6  # an object is exchanged in 40 % of the captions that name one
CLOSE_ANSWER = 0.1  # an answer of the same type is drawn with probability confidence - 0.1
TRIES = 100


class Negatives:
    """Texts to draw wrong ones from.

    Args:
        captions: file of captions, one per line; it may be large, and only the lines drawn are read.
        objects: names of objects, at least two.
        answers: answer type -> answers, at least two each; has the type "other".
    """

    def __init__(self, captions: TsvFile, objects: Sequence[str], answers: Mapping[str, Sequence[str]]) -> None:
        self.captions, self.objects, self.answers = captions, objects, answers
        self.types = {answer: kind for kind, known in answers.items() if kind != OTHER for answer in known}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Negatives":
        """Read `all_captions.txt`, `object.txt` and `type2ans.json` of a folder; UserError if one is unfit."""
        paths = [Path(folder) / name for name in (CAPTION_FILE, OBJECT_FILE, ANSWER_FILE)]
        for path in paths:
            if not path.is_file():
                raise UserError(f"There is no file {path}; --neg-sample-dir names the folder that has it.")
        objects = _unique(text_lines(_read_text(paths[1])))
        if len(objects) < 2:
            raise UserError(f"{paths[1]} needs at least two names of objects, one per line.")
        return cls(TsvFile(paths[0], (0,)), objects, _read_answers(paths[2]))

    def caption(self, caption: str, objects: Sequence[str], max_words: int, rng: random.Random) -> str:
        """A normalized caption that is not the given one: an object exchanged, or another image's caption.

        Args:
            caption: the true one, as it stands in the row.
            objects: names that may occur in it.
            max_words: longer ones are cut.
            rng: draws depend on it alone.
        Raises:
            ValueError: nothing but the given caption was found.
        """
        truth = normalize_caption(caption, max_words)
        named = [name for name in objects if name and name in caption]
        for _ in range(TRIES):
            drawn = normalize_caption(self._draw_caption(caption, named, rng), max_words)
            if drawn and drawn != truth:
                return drawn
        raise ValueError(f"{self.captions.path} has no caption that differs from {quoted(truth)}")

    def answer(self, answer: str, confidence: float, rng: random.Random) -> str:
        """An answer that is not the given one: the surer that was, the likelier one of its own type."""
        answer_type = self.types.get(answer)
        if not confidence > rng.random() + CLOSE_ANSWER or answer_type is None:
            return _other_than(answer, self.answers[OTHER], rng)
        if answer_type == HOW_MANY and answer.isdecimal() and rng.random() > 0.5:
            step = rng.choice((-1, 1))
            return str(int(answer) + (step if int(answer) else 1))
        return _other_than(answer, self.answers[answer_type], rng)

    def _draw_caption(self, caption: str, named: Sequence[str], rng: random.Random) -> str:
        """One attempt, "" if it hit a blank line."""
        if rng.random() > SWAP_ABOVE and named:
            name = rng.choice(named)
            return caption.replace(name, _other_than(name, self.objects, rng))
        try:
            return self.captions[rng.randrange(len(self.captions))][0].strip()
        except BadRowError:
            return ""


def _other_than(text: str, texts: Sequence[str], rng: random.Random) -> str:
    """One of the texts, all different, but not the given one; the last one is the substitute."""
    drawn = texts[rng.randrange(len(texts) - 1)]
    return texts[-1] if drawn == text else drawn


def _unique(texts: Sequence[str]) -> list[str]:
    """Stripped texts in order, without blank ones and doubles."""
    return [text for text in dict.fromkeys(text.strip() for text in texts) if text]


def _read_text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore the file.") from error


def _read_answers(path: Path) -> dict[str, list[str]]:
    """Answer type -> different answers."""
    try:
        answers = {answer_type: _unique(known) for answer_type, known in parse_json(_read_text(path)).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a JSON object of answer type: list of answers ({error}).") from error
    few = [answer_type for answer_type in (OTHER, *answers) if len(answers.get(answer_type, [])) < 2]
    if few:
        raise UserError(f"{path} needs at least two answers of type {quoted(few[0])}.")
    return answers
