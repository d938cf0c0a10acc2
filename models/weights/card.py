"""The card of a checkpoint: what `train.py` writes beside the weights, so that the file needs no other to be used.

A plain dict of texts, numbers and lists under `KEY`, at the top of the file: stock readers pass over it, the safe
loader takes it, conversions carry it along. It names no path.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from data.images import normalisation
from data.prompts import PROMPTS, prompt
from data.text import Vocabulary
from utils.errors import UserError, quoted

KEY = "ofa_card"
FORMAT = 1
LISTED = 1_000_000  # characters of a candidate list, as JSON, above which the card holds its digest only
# Options of the rows; those of vocabulary and image have parts of their own.
ROW_OPTIONS = (
    "max_src_length", "max_tgt_length", "max_image_size", "code_image_size", "prompt_type", "add_object",
    "max_object_length", "add_caption", "unconstrained_training", "constraint_range", "uses_ema",
)  # fmt: skip
# Tasks that ask more than their own prompts: first words of their names.
PROMPTS_OF = {"unify_task": ("pretrain", "caption", "vqa_gen", "refcoco")}


@dataclass(frozen=True)
class Ids:
    """A vocabulary: digest of its symbols in order, their number, kind of encoding, what `Vocabulary.load` takes."""

    digest: str
    size: int
    bpe: str
    code_dict_size: int
    num_bins: int

    @classmethod
    def of(cls, vocab: Vocabulary) -> "Ids":
        """Of a loaded vocabulary."""
        return cls(ids_digest(vocab, len(vocab)), len(vocab), vocab.bpe, vocab.num_codes, vocab.num_bins)

    def __str__(self) -> str:
        return f"{self.size} ids, digest {self.digest[:12]}"


@dataclass(frozen=True)
class Picture:
    """Side in pixels, mean and deviation of the three colors."""

    side: int
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def of_processor(cls, content: Mapping[str, Any], source: str) -> "Picture":
        """What the image processor of a Hugging Face folder says; UserError if that makes no sense."""
        mean, std = normalisation(False)
        size = content.get("size")
        sides = set(size.values()) if isinstance(size, dict) else {size}
        side = sides.pop() if len(sides) == 1 else None
        if not isinstance(side, int) or side < 1:
            raise UserError(f"The image processor of {source} has the size {quoted(size)}: name one square size there.")
        return cls(side, content.get("image_mean") or mean, content.get("image_std") or std)

    def options(self, source: str) -> dict[str, Any]:
        """These as options of `DataConfig`; UserError for a normalization that is none of them."""
        for imagenet in (False, True):
            if tuple(map(tuple, (self.mean, self.std))) == normalisation(imagenet):
                return {"patch_image_size": self.side, "imagenet_default_mean_and_std": imagenet}
        raise UserError(
            f"{source} was trained with images of mean {list(self.mean)} and deviation {list(self.std)}, which is not "
            "supported here: use the repository that trained it."
        )


@dataclass(frozen=True)
class Candidates:
    """A closed answer set: digest whatever the order, number, and the answers in order unless they are too many."""

    digest: str
    count: int
    answers: Sequence[str] | None = None


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself.

    Attributes:
        task: what it was trained for. prompts: name in `PROMPTS` -> template.
        decoding: options of `GenerationConfig`. candidates: None when any text may be an answer.
        options: of `ROW_OPTIONS`, those the task has.
    """

    task: str
    vocabulary: Ids
    picture: Picture
    prompts: Mapping[str, str]
    decoding: Mapping[str, Any]
    candidates: Candidates | None
    options: Mapping[str, Any]

    @classmethod
    def make(
        cls,
        task: str,
        config: Mapping[str, Any],
        vocab: Vocabulary,
        answers: Sequence[str] = (),
        decoding: Mapping[str, Any] | None = None,
    ) -> "Card":
        """The card of a run.

        Args:
            config: options of the task. answers: its candidates, none for free text. decoding: how it writes.
        """
        mean, std = normalisation(bool(config["imagenet_default_mean_and_std"]))
        listed = list(answers) if len(json.dumps(list(answers))) <= LISTED else None
        return cls(
            task,
            Ids.of(vocab),
            Picture(config["patch_image_size"], list(mean), list(std)),
            task_prompts(task, vocab.bpe),
            dict(decoding or {}),
            Candidates(answers_digest(answers), len(answers), listed) if answers else None,
            {name: config[name] for name in ROW_OPTIONS if name in config},
        )

    def plain(self) -> dict[str, Any]:
        """What a checkpoint holds under `KEY`."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def read(cls, checkpoint: Mapping[str, Any], source: str) -> "Card | None":
        """The card of a loaded checkpoint, None if it has none: released files, and those of other programs.

        Raises UserError for one of a later format, or one that makes no sense.
        """
        content = checkpoint.get(KEY)
        if content is None:
            return None
        try:
            parts = dict(content)
            if parts.pop("format") > FORMAT:
                raise UserError(f"{source} was written by a later version of this repository: update the repository.")
            candidates = parts["candidates"] and Candidates(**parts["candidates"])
            parts |= {name: dict(parts[name]) for name in ("prompts", "decoding", "options")}
            parts |= {"vocabulary": Ids(**parts["vocabulary"]), "picture": Picture(**parts["picture"])}
            card = cls(**{**parts, "candidates": candidates})
            card._check_sense(source)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"The entry {KEY!r} of {source} is invalid ({error}): copy the file again, or remove the entry."
            ) from error
        return card

    def _check_sense(self, source: str) -> None:
        if wrong := [f.name for f in fields(Ids) if not isinstance(getattr(self.vocabulary, f.name), f.type)]:  # type: ignore[arg-type]
            raise ValueError(f"the vocabulary's {wrong[0]}")
        if self.candidates and self.candidates.answers is not None:
            if answers_digest(self.candidates.answers) != self.candidates.digest:
                raise ValueError("its candidates do not match its digest")
        self.picture.options(source)

    def task_options(self, source: str) -> dict[str, Any]:
        """All that the card says as options of a task."""
        vocabulary = self.vocabulary
        numbers = {"bpe": vocabulary.bpe, "code_dict_size": vocabulary.code_dict_size, "num_bins": vocabulary.num_bins}
        rows = {name: value for name, value in self.options.items() if name in ROW_OPTIONS and value is not None}
        return {**rows, **numbers, **self.picture.options(source)}

    def fits(self, vocab: Vocabulary, grown: bool = False) -> bool:
        """Whether a vocabulary is the checkpoint's; with `grown`, other ids may follow behind its own."""
        size = self.vocabulary.size if grown else len(vocab)
        return len(vocab) >= size and ids_digest(vocab, size) == self.vocabulary.digest

    def check_vocabulary(self, vocab: Vocabulary, source: str, given: str, advice: str, grown: bool = False) -> None:
        """Raises UserError unless a vocabulary fits.

        Args:
            given: what the vocabulary was asked for with. advice: what to do instead; both for the message.
        """
        vocabulary = self.vocabulary
        if not self.fits(vocab, grown):
            raise UserError(
                f"{given} makes another vocabulary ({Ids.of(vocab)}) than {source} was trained with "
                f"({vocabulary}): {advice} "
                f"({vocabulary.code_dict_size} codes, {vocabulary.num_bins} bins, {vocabulary.bpe})."
            )

    def check_prompts(self, source: str) -> None:
        """Raises UserError when the model was trained with other prompts than the task asks here."""
        present = {name: PROMPTS.get(name) and prompt(name, self.vocabulary.bpe) for name in self.prompts}
        if changed := [name for name in self.prompts if present[name] != self.prompts[name]]:
            name = changed[0]
            raise UserError(
                f"{source} was trained with the prompt {self.prompts[name]!r} for {name!r}, data/prompts.py has "
                f"{present[name]!r}: put what it was trained with into data/tasks.py."
            )

    def check_answers(self, answers: Sequence[str], source: str, given: str, advice: str) -> None:
        """Raises UserError unless answers are the checkpoint's candidates, in any order; see `check_vocabulary`."""
        candidates = Candidates("", 0) if self.candidates is None else self.candidates
        if len(answers) != candidates.count or (answers and answers_digest(answers) != candidates.digest):
            raise UserError(
                f"{given} holds other answers ({len(answers)}) than {source} was trained with "
                f"({candidates.count}): {advice}."
            )


def ids_digest(vocab: Vocabulary, size: int) -> str:
    """SHA-256 over the kind of encoding and the symbols of the first `size` ids; counts in dict.txt do not matter."""
    return _digest([vocab.bpe, *(vocab[number] for number in range(size))])


def answers_digest(answers: Sequence[str]) -> str:
    """SHA-256 over the answers, whatever their order: the exact best one does not depend on it."""
    return _digest(sorted(answers))


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode("ascii")).hexdigest()


def task_prompts(task: str, bpe: str) -> dict[str, str]:
    """Name -> template of all prompts of a task."""
    first = PROMPTS_OF.get(task, (task,))
    return {name: prompt(name, bpe) for name in PROMPTS if name.split()[0] in first}
