"""What can be asked of the server: a method of the predictor each, with the fields of a request and of its answer.

One table says what is checked, what the API description shows, and what is computed.
"""

import base64
import binascii
import hashlib
import io
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch

from data.images import decode_base64
from data.text import has_words
from models import records
from models.generation import GenerationConfig
from models.predictor import OFAPredictor
from models.predictor.arguments import choices
from utils.errors import UserError, quoted
from utils.files import whole_characters
from utils.options import LARGEST_SEED

LONGEST = 20_000  # characters of a text
MOST_NAMES = 20_000  # candidates
# What a request may cost at most: options of `GenerationConfig` and fields of methods.
MOST_DECODING = {"beam": 32, "max_len_a": 2, "max_len_b": 512, "min_len": 512}
NO_DECODING = ("retain_dropout",)  # it would change the model under the other requests
JSON_KINDS: dict[Any, str] = {bool: "boolean", int: "integer", float: "number"}
Values = dict[str, Any]
_numbers = itertools.count()


@dataclass(frozen=True)
class Field:
    """A field of a request.

    Attributes:
        kind: image, text, names (a list of texts), integer or decoding (options of `GenerationConfig`).
        needed: whether it must be there. empty: whether a text without words is one.
        least, most: of an integer; least 0 = names may be an empty list.
    """

    name: str
    kind: str
    help: str
    needed: bool = False
    empty: bool = False
    least: int = 1
    most: int = 0

    @property
    def schema(self) -> Values:
        """JSON schema."""
        described: Values = {"description": self.help}
        if self.kind == "names":
            return {**described, "type": "array", "items": {"type": "string"}, "maxItems": MOST_NAMES}
        if self.kind == "integer":
            return {**described, "type": "integer", "minimum": self.least, "maximum": self.most}
        if self.kind == "decoding":
            return {**described, "type": "object", "additionalProperties": False, "properties": _decoding_schema()}
        encoded = {"contentEncoding": "base64"} if self.kind == "image" else {"maxLength": LONGEST}
        return {**described, "type": "string", **encoded}

    @property
    def of_item(self) -> bool:
        """Whether requests that are answered together may differ in it."""
        return self.kind in ("image", "text")


class Question(NamedTuple):
    """A request that can be answered: those of equal keys together.

    Attributes:
        key: method, and a digest of the options. item: values of the fields that may differ. options: the others'.
    """

    key: tuple[str, str]
    item: Values
    options: Values


@dataclass(frozen=True)
class Method:
    """A method of the predictor.

    Attributes:
        task: whose decoding options it takes; None = it takes none.
        fields: of a request. returns: JSON schemas of the answer's fields.
        answer: (predictor, lists of values by field, options) -> a record for each item.
    """

    name: str
    help: str
    task: str | None
    fields: tuple[Field, ...]
    returns: Values
    answer: Callable[[OFAPredictor, dict[str, list[Any]], Values], records.Records]

    @property
    def request_schema(self) -> Values:
        """JSON schema of a request."""
        return {
            "type": "object",
            "properties": {field.name: field.schema for field in self.fields},
            "required": [field.name for field in self.fields if field.needed],
            "additionalProperties": False,
        }

    @property
    def form_schema(self) -> Values:
        """JSON schema of a request as an HTML form, where the image is a file."""
        schema = self.request_schema
        for field in self.fields:
            if field.kind == "image":
                schema["properties"][field.name] = {"description": field.help, "type": "string", "format": "binary"}
        return schema

    @property
    def answer_schema(self) -> Values:
        """JSON schema of an answer."""
        return {"type": "object", "properties": self.returns, "required": list(self.returns)}

    def question(self, predictor: OFAPredictor, values: Mapping[str, Any]) -> Question:
        """A checked request; its image is decoded and resized, by the thread that calls.

        Args:
            values: by field; an image is the bytes of its file, or base64 of them.

        Raises:
            UserError: a field that is missing, unknown, or of a wrong type or value.
        """
        known = {field.name: field for field in self.fields}
        if unknown := [name for name in values if name not in known]:
            raise UserError(f"There is no field {quoted(unknown[0])}: choose among {', '.join(known)}.")
        given = {name: value for name, value in values.items() if value is not None}
        if missing := [field.name for field in self.fields if field.needed and field.name not in given]:
            raise UserError(f"There is no {missing[0]}: a request needs one.")
        for name, value in given.items():
            given[name] = _checked(known[name], value)
        if self.name == "draw" and not (predictor.vqgan and predictor.vocab.num_codes):
            raise UserError("This server cannot draw: it would need a text-to-image model and --vqgan.")
        if self.task is not None and "decoding" in given:
            predictor.description.decoding(self.task, given["decoding"])
        item = {field.name: given.get(field.name) for field in self.fields if field.of_item}
        options = {name: value for name, value in given.items() if not known[name].of_item}
        if (image := item.get("image")) is not None:
            item["image"] = predictor.prepare(image)
        # With a seed the answer must not depend on who else asks.
        alone = str(next(_numbers)) if "seed" in options else ""
        digest = hashlib.sha256((json.dumps(options, sort_keys=True) + alone).encode()).hexdigest()
        return Question((self.name, digest), item, options)

    def answers(self, predictor: OFAPredictor, questions: list[Question]) -> records.Records:
        """Answers to questions of one key.

        Raises UserError where there is none, also for options that leave no finite score.
        """
        columns = {name: [question.item[name] for question in questions] for name in questions[0].item}
        found = self.answer(predictor, columns, questions[0].options)
        for record in found:
            scores = record.get("scores", [record.get("score")])
            if not all(isinstance(score, float) and math.isfinite(score) for score in scores):
                raise UserError("The model gives no finite score with these decoding options: choose others.")
        return found


def _checked(field: Field, value: Any) -> Any:
    """A value of the right type and size."""
    if field.kind == "image":
        return _image(field.name, value)
    if field.kind == "text":
        return _text(field.name, value, field.empty)
    if field.kind == "integer":
        if not isinstance(value, int) or isinstance(value, bool) or not field.least <= value <= field.most:
            expected = f"an integer from {field.least} to {field.most}"
            raise UserError(f"{field.name} must be {expected}, not {_shown(value)}.")
        return value
    if field.kind == "names":
        if not isinstance(value, list) or len(value) > MOST_NAMES:
            raise UserError(f"{field.name} must be a list of at most {MOST_NAMES} texts, not {_shown(value)}.")
        names = [_text(f"{field.name}[{number}]", name, empty=True) for number, name in enumerate(value)]
        return list(choices(field.name, names).names) if names or field.least else names
    return _decoding(field.name, value)


def _image(name: str, value: Any) -> bytes:
    if not isinstance(value, bytes | str):
        raise UserError(f"{name} must be base64 of an image file, not {_shown(value)}.")
    try:
        # Programs such as `base64` end a line after 76 characters.
        data = decode_base64("".join(value.splitlines())) if isinstance(value, str) else value
    except (ValueError, binascii.Error):
        raise UserError(f"{name} must be base64 of an image file; paths and URLs are not read.") from None
    if not data:
        raise UserError(f"{name} is empty: send the bytes of an image file.")
    return data


def _text(name: str, value: Any, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text, not {_shown(value)}.")
    if len(value) > LONGEST:
        raise UserError(f"{name} is too long: a text may have {LONGEST:,} characters.")
    if not whole_characters(value):
        raise UserError(f"{name} holds half of a surrogate pair, which is not a character: correct the text.")
    if not empty and not has_words(value):
        raise UserError(f"{name} is a text without words.")
    return value


def _decoding(name: str, value: Any) -> Values:
    if not isinstance(value, dict):
        raise UserError(f"{name} must be an object of decoding options, not {_shown(value)}.")
    for option, number in value.items():
        if option in NO_DECODING and number:
            raise UserError(f"{name}: {option} cannot be used on a server.")
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{name}: {option} must be a finite number.")
        if isinstance(number, int | float) and not abs(number) <= MOST_DECODING.get(option, 10**6):
            raise UserError(
                f"{name}: {option} may be at most {MOST_DECODING.get(option, 10**6)}, not {_shown(number)}."
            )
    return value


def _shown(value: Any) -> str:
    """A wrong value in a message, short however large it is."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} with {len(value)} entries"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and abs(value) > 10**20:
        return "a larger number"
    return quoted(value)


def _decoding_schema() -> Values:
    schema: Values = {}
    for option in fields(GenerationConfig):
        if option.name not in NO_DECODING:
            kind = JSON_KINDS.get(option.type, "string")
            schema[option.name] = {"type": kind, "description": option.metadata["help"]}
            if option.name in MOST_DECODING:
                schema[option.name]["maximum"] = MOST_DECODING[option.name]
    return schema


def _draw(p: OFAPredictor, v: dict[str, list[Any]], options: Values) -> records.Records:
    seed, n = options.get("seed"), options.get("n", 1)
    with torch.random.fork_rng(enabled=seed is not None):  # later drawings stay random
        if seed is not None:
            torch.manual_seed(seed)
        drawn: Any = p.draw(v["prompt"], n, **options.get("decoding", {}))
    lists = [[image] for image in drawn] if n == 1 else drawn
    return [
        {"pictures": [_png(image) for image in images], "scores": [image.info["score"] for image in images]}
        for images in lists
    ]


def _png(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _text_answer(name: str, says: str) -> Values:
    return {name: {"type": "string", "description": says}, "score": SCORE}


SCORE = {"type": "number", "minimum": 0, "maximum": 1, "description": "how sure the model is"}
SCORES = {"type": "array", "items": SCORE}
CORNERS = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
IMAGE = Field("image", "image", "an image file: base64, or an uploaded file; never a path or URL", True)
DECODING = Field("decoding", "decoding", 'generation options, e.g. {"beam": 1}')


def _words(name: str, says: str, needed: bool = True, empty: bool = False) -> Field:
    return Field(name, "text", says, needed, empty)


# fmt: off
METHODS = {method.name: method for method in (
    Method("caption", "Describes an image.", "caption", (IMAGE, DECODING), _text_answer("caption", "what it shows"),
           lambda p, v, o: records.captions(p, v["image"], **o.get("decoding", {}))),
    Method("answer", "Answers a question about an image.", "vqa_gen",
           (IMAGE, _words("question", "the question"),
            Field("candidates", "names", "the answers to choose among; [] = any text; default: the checkpoint's",
                  least=0), _words("objects", "objects in the image, joined by &&", False, True), DECODING),
           _text_answer("answer", "the answer"),
           lambda p, v, o: records.answers(p, v["image"], v["question"], o.get("candidates"), v["objects"],
                                           **o.get("decoding", {}))),
    Method("ground", "Finds the box that a phrase describes.", "refcoco",
           (IMAGE, _words("phrase", "what to find"), Field("n_best", "integer", "number of boxes", most=32), DECODING),
           {"boxes": {"type": "array", "items": CORNERS, "description": "x0, y0, x1, y1 in pixels"}, "scores": SCORES},
           lambda p, v, o: records.boxes(p, v["image"], v["phrase"], o.get("n_best", 1), **o.get("decoding", {}))),
    Method("entail", "Decides whether an image proves a sentence.", None,
           (IMAGE, _words("hypothesis", "the sentence"), _words("premise", "what else is known", False, True)),
           _text_answer("entailment", "yes, no or maybe"),
           lambda p, v, o: records.entailments(p, v["image"], v["hypothesis"], v["premise"])),
    Method("classify", "Classifies an image.", None,
           (IMAGE, Field("names", "names", "the classes; default: the checkpoint's"),
            Field("top_k", "integer", "number of classes", most=1000)),
           {"labels": {"type": "array", "items": {"type": "string"}}, "scores": SCORES},
           lambda p, v, o: records.labels(p, v["image"], o.get("names"), o.get("top_k", 5))),
    Method("draw", "Draws what a text says.", "image_gen",
           (_words("prompt", "the text"), Field("n", "integer", "number of images", most=16),
            Field("seed", "integer", "makes the drawing repeat; it is drawn alone", least=0, most=LARGEST_SEED),
            DECODING),
           {"pictures": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"},
                         "description": "PNG files"}, "scores": SCORES}, _draw),
    Method("summarise", "Summarizes a text.", "gigaword", (_words("text", "the text"), DECODING),
           _text_answer("summary", "a headline"),
           lambda p, v, o: records.summaries(p, v["text"], **o.get("decoding", {}))),
    Method("generate", "Follows an instruction, with or without an image.", "",
           (Field("image", "image", IMAGE.help), _words("prompt", "the instruction"), DECODING),
           _text_answer("text", "what the model writes"),
           lambda p, v, o: records.writings(p, v["image"], v["prompt"], **o.get("decoding", {}))),
)}
# fmt: on
