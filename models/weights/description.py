"""What a checkpoint says of itself, and what is found or asked for where it says nothing."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from data.answers import AnswerConfig, read_answers
from data.base import DataConfig
from data.tasks import TASKS
from data.text import Vocabulary
from models.generation import GenerationConfig
from models.ofa import OFAConfig
from models.weights import model_config
from models.weights.card import Card, Picture
from utils.errors import UserError
from utils.files import parse_json
from utils.option_values import odd_option

C = TypeVar("C", bound=DataConfig)
ROOT = Path(__file__).parents[2]
BPE_DIRS = (ROOT / "utils" / "BPE", ROOT / "digits" / "BPE")
# Options that belong to the model; the others hold for the task that it was trained for.
SHARED = (
    "patch_image_size", "imagenet_default_mean_and_std", "bpe", "code_dict_size", "num_bins", "max_image_size",
)  # fmt: skip
# Options that are read as they are stored.
USED = (*SHARED, "bpe_dir", "max_src_length", "max_tgt_length", "prompt_type", "ans2label_file", "ans2label_dict")
# Width of a published model -> side of its images (pixels): Hugging Face folders do not tell.
PUBLISHED_SIDES = {256: 256, 512: 256, 768: 384, 1024: 480, 1280: 480}
CHINESE_SIZE = 4 + 21128 + 1 + 8192 + 1000  # ids with BERT's vocabulary
ANSWER_OPTIONS = {"ans2label_file", "ans2label_dict"}


@dataclass(frozen=True)
class Description:
    """What is known of a checkpoint.

    Attributes:
        source: its path, for messages. task: what it was trained for. model: the model's options.
        options: the task's options as stored, without those that are None.
        averaged: whether the file holds a running average of the weights.
        given: options that the caller named; they win, for every task.
        card: what `train.py` wrote of the run; None in files of other programs and of earlier versions.
    """

    source: str
    task: str | None
    model: OFAConfig
    options: Mapping[str, Any] = field(default_factory=dict)
    averaged: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    card: Card | None = None

    def option(self, name: str, default: Any = None) -> Any:
        """An option of the model, given, stored or else the default."""
        return self.given.get(name, self.options.get(name, default))

    def config(self, kind: type[C], task: str) -> C:
        """Options of a task's rows: those stored and those given, which win.

        For a task that the model was not trained for, the recipe's take the place of those stored.
        """
        names = {f.name for f in fields(kind)}
        stored = {name: value for name, value in self.options.items() if name in SHARED or task == self.task}
        recipe = TASKS[task].recipe if task in TASKS and task != self.task else {}
        values = {**recipe, **stored, **self.given}
        return kind(**{name: value for name, value in values.items() if name in names})

    def decoding(self, task: str, given: Mapping[str, Any]) -> GenerationConfig:
        """How to decode for a task: the recipe's options, those stored for validation and evaluation, those given.

        Raises UserError for an unknown option or a wrong value.
        """
        trained_for_task = task == self.task
        if trained_for_task and self.card is not None:
            stored = dict(self.card.decoding)
        else:
            stored = decoding_defaults(task, self.options.get("eval_args") if trained_for_task else None)
        limit = self.config(DataConfig, task).constraint_range
        values = {**stored, **({"constraint_range": limit} if limit else {}), **given}
        try:
            text = json.dumps(values)
        except (TypeError, ValueError) as error:
            raise UserError(f"Decoding options must be numbers, strings, True or False ({error}).") from error
        return GenerationConfig.from_json(text, "Decoding options")

    def listed(self, task: str) -> list[str] | None:
        """The candidates that the checkpoint itself holds for a task; None where the caller named others."""
        if self.card is None or task != self.task or ANSWER_OPTIONS & self.given.keys():
            return None
        candidates = self.card.candidates
        return None if candidates is None or candidates.answers is None else list(candidates.answers)

    def answers(self, config: AnswerConfig, task: str, keyword: str) -> list[str] | None:
        """The task's closed answer set; None when the checkpoint has none.

        Args:
            config: options of the task, from `config`. keyword: what a method calls its own set, for the message.

        Raises UserError when the file of the answers is not where it was, holds none, or others than in training.
        """
        answer_flags = ANSWER_OPTIONS & self.given.keys()
        if not answer_flags and (task != self.task or getattr(config, "unconstrained_training", False)):
            return None
        if listed := self.listed(task):
            return listed
        if config.ans2label_file and "ans2label_file" not in answer_flags:
            file = find(config.ans2label_file)
            if file is None:
                raise UserError(
                    f"{self.source} answers with the candidates of {config.ans2label_file}, which is not there: "
                    f"load it with ans2label_file=..., or pass {keyword}=[...]."
                )
            config.ans2label_file = str(file)
        answers = read_answers(config)
        if self.card is not None and not answer_flags:
            advice = f"load it with ans2label_file=..., or pass {keyword}=[...]"
            self.card.check_answers(answers, self.source, str(config.ans2label_file), advice)
        return answers


def decoding_defaults(task: str, eval_args: str | None) -> dict[str, Any]:
    """How a model decodes unless told otherwise: as the recipe does, and as --eval-args say (JSON)."""
    try:
        recipe = TASKS[task].decoding if task in TASKS else {}
        return {**recipe, **dict(parse_json(eval_args or "{}").items())}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"--eval-args {eval_args!r:.200} is not a JSON object: pass decoding options.") from error


def describe(checkpoint: Mapping[str, Any], source: str = "The checkpoint", **given: Any) -> Description:
    """Reads what a loaded checkpoint says of itself: the one place that knows where files keep it.

    Args:
        checkpoint: as `load_checkpoint` returns it. source: its path, for messages.
        given: options that the caller names; those of the model's size are passed on to it.

    Raises:
        UserError: no OFA model, an option that does not exist, an image size that is neither stored nor known, or
            a card that cannot be read.
    """
    model_options = {f.name for f in fields(OFAConfig)}
    model = model_config(checkpoint, {name: given[name] for name in given if name in model_options}, source)
    stored = checkpoint.get("cfg") or {}
    # Old fairseq keeps all options flat in "args"; released files have the model's as such a Namespace too.
    of_model, args, task = (_plain(part) for part in (stored.get("model"), checkpoint.get("args"), stored.get("task")))
    options = {**of_model, **args, **task}
    options = {name: value for name, value in options.items() if value is not None}
    if (card := Card.read(checkpoint, source)) is not None:
        options |= card.task_options(source)
    if "patch_image_size" not in options and (images := checkpoint.get("image_processor")):
        options |= Picture.of_processor(images, source).options(source)
    if odd := odd_option(AnswerConfig, {name: options[name] for name in USED if name in options}):
        raise UserError(f"{source} was trained with an impossible option ({odd}): copy the file again.")
    if "patch_image_size" not in {**options, **given}:
        if model.encoder_embed_dim not in PUBLISHED_SIDES:
            raise UserError(f"{source} does not say how large its images are: pass patch_image_size=... (pixels).")
        options["patch_image_size"] = PUBLISHED_SIDES[model.encoder_embed_dim]
    averaged = (checkpoint.get("extra_state") or {}).get("ema") is not None
    name = task.get("_name") or args.get("task") if card is None else card.task
    return Description(source, name, model, options, averaged, given, card)


def load_vocabulary(description: Description) -> Vocabulary:
    """The vocabulary of a checkpoint: of the folder given, of the one stored, or of a folder here that fits.

    With a card it is told by its digest, without one by the number of ids. Raises UserError when none fits.
    """
    return find_vocabulary(description)[1]


def find_vocabulary(description: Description, option: str = "bpe_dir") -> tuple[str, Vocabulary]:
    """The folder of a checkpoint's vocabulary, and the vocabulary; `option` names it in messages.

    See `load_vocabulary`.
    """
    size, card, source = description.model.vocab_size, description.card, description.source
    usual_bpe = "bert" if size == CHINESE_SIZE else "gpt2"
    options = [description.option(*pair) for pair in (("bpe", usual_bpe), ("code_dict_size", 8192), ("num_bins", 1000))]
    advice = f"pass {option}=..., the folder of the dict.txt it was trained with"
    if named_folder := description.given.get("bpe_dir"):
        vocab = Vocabulary.load(named_folder, *options)
        if card is not None:
            card.check_vocabulary(vocab, source, f"{option}={named_folder}", advice)
        elif not _fits(vocab, size):
            raise UserError(
                f"bpe_dir={named_folder} makes {len(vocab)} ids, {source} has {size}: "
                "pass the bpe_dir=..., code_dict_size=... and num_bins=... it was trained with."
            )
        return str(named_folder), vocab
    stored = find(description.options.get("bpe_dir", ""))
    for folder in [*([stored] if stored else []), *BPE_DIRS]:
        try:
            vocab = Vocabulary.load(folder, *options)
        except UserError:  # another kind of vocabulary
            continue
        if _fits(vocab, size) if card is None else card.fits(vocab):
            return str(folder), vocab
    if card is None:
        raise UserError(
            f"No vocabulary here has the {size} ids of {source}: pass bpe_dir=..., the folder of its dict.txt, and "
            "code_dict_size=... and num_bins=..., if it was trained with others than 8192 and 1000."
        )
    changed = f"{stored} holds another one now, and no" if stored else "No"
    raise UserError(f"{changed} folder here makes the vocabulary of {source} ({card.vocabulary}): {advice}.")


def _plain(options: Any) -> dict[str, Any]:
    return dict(vars(options) if isinstance(options, argparse.Namespace) else options or {})


def find(stored: str) -> Path | None:
    """Where a stored path is now: as it stands, or below the repository (released files name ../../utils/BPE)."""
    if not stored:
        return None
    inside = [part for part in Path(stored).parts if part not in ("..", "/")]
    return next((path for path in (Path(stored), ROOT.joinpath(*inside)) if path.exists()), None)


def _fits(vocab: Vocabulary, size: int) -> bool:
    return len(vocab) in (size, size - 1)  # old files may have one row too many
