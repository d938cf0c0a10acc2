"""COCO-style annotation files -> what they say about each image, for the builders of data files.

Entries that cannot be used end the program or, where the user asks for it, are left out and counted.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data.negatives import HOW_MANY, OTHER
from data.text import normalize_question, require_words
from data.vqa_gen import CONFIDENCE_MARK
from utils.constants import SEPARATOR
from utils.errors import UserError, quoted
from utils.files import RepeatedKeyError, read_text, unrepeated, whole_characters
from utils.plain_pickle import load_plain_pickle

YES_NO = "yes/no"
NO_ANSWERS = {OTHER: ("yes", "no"), HOW_MANY: ("1", "2")}  # fill up lists that would be too short to draw from
SHOWN = 20  # bad entries printed in full
Box = tuple[float, float, float, float]


class Region(NamedTuple):
    """A box x, y, width, height in pixels, and what is in it."""

    box: Box
    id: str
    text: str


class Phrase(NamedTuple):
    """A region, the entry that says so, and the split it is in, if the file names one."""

    box: Box
    id: str
    text: str
    where: str
    split: str


class Question(NamedTuple):
    """A question and its answers with their confidences, best first; none if only the questions were read.

    `kind`: that of `answer_kind`.
    """

    id: str
    text: str
    answers: dict[str, float]
    kind: str = ""


@dataclass
class AnnotatedImage:
    """An image file and all that is said about it; captions are (id, text).

    `where` is the entry that names the file, `split` the one it is in, if the annotations say so; `has_entries`:
    captions were given, also if none of them can be used.
    """

    file_name: str
    where: str = ""
    split: str = ""
    captions: list[tuple[str, str]] = field(default_factory=list)
    objects: list[Region] = field(default_factory=list)
    phrases: list[Phrase] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    has_entries: bool = False

    def is_used(self) -> bool:
        """Whether anything is said about it."""
        return bool(self.captions or self.objects or self.phrases or self.questions)


class BadEntries:
    """Judges what cannot be used.

    Args:
        skip: count it instead of raising UserError. flag: the flag that asks for it.
    """

    def __init__(self, skip: bool, flag: str = "--skip-bad-rows") -> None:
        self.skip, self.flag, self.count = skip, flag, 0

    def add(self, where: str, reason: str) -> None:
        """Something at a place is unusable; UserError unless it is to be skipped."""
        if not self.skip:
            raise UserError(f"{where}: {reason}; correct it or pass {self.flag}.")
        self.count += 1
        if self.count <= SHOWN:
            tqdm.write(f"skipped {where}: {reason}")


class Annotations:
    """Images by id, filled from one file after the other; each method raises UserError for a file it cannot read.

    Args:
        bad: judges entries. find: the file of an image that no annotations list, by its id, or ValueError.
    Attributes:
        images: image id -> image. categories: category id -> name.
    """

    def __init__(self, bad: BadEntries, find: Callable[[Hashable], Path] | None = None) -> None:
        self.bad, self.find = bad, find
        self.images: dict[Hashable, AnnotatedImage] = {}
        self.categories: dict[Hashable, str] = {}
        self._boxes: dict[Hashable, tuple[Box, Hashable]] = {}  # and image, by annotation id
        self._crowds = set[Hashable]()  # annotation ids
        self._where = ""  # the entry being read
        self._contents: dict[Path, Any] = {}

    @property
    def answer_kinds(self) -> Counter[tuple[str, str]]:
        """How often an answer is the best one to a kind of question."""
        questions = (question for image in self.images.values() for question in image.questions if question.answers)
        return Counter((next(iter(question.answers)), question.kind) for question in questions)

    def peek(self, path: Path) -> Any:
        """Content of a file that will be added next: it is read once."""
        if path not in self._contents:
            self._contents[path] = read_content(path)
        return self._contents[path]

    def add_captions(self, path: Path) -> None:
        """A file of images and of annotations with `caption`."""

        def add(number: int, entry: dict[str, Any]) -> None:
            image = self._image(entry)
            image.has_entries = True
            image.captions.append((_id(entry, number), _words(entry["caption"], "caption")))

        self._each(path, self._open(path), "annotations", add)

    def add_split_captions(self, path: Path) -> None:
        """Karpathy's split file: `images` with their `sentences`, `filename` and `split`."""

        there = set(self.images)  # of files before this one, which count their images anew

        def add(number: int, entry: dict[str, Any]) -> None:
            name = "/".join(str(entry[key]) for key in ("filepath", "filename") if entry.get(key) or key == "filename")
            captions = [(_id(said, 0, "sentid"), _words(said["raw"], "caption")) for said in entry["sentences"]]
            field = "cocoid" if "cocoid" in entry else "imgid"
            key = entry[field]
            if field == "imgid" and key in there:
                names = (f"{path.stem}_{number}{key}" for number in ("", *(f"{n}_" for n in range(2, 100))))
                key = next((name for name in names if name not in there), key)
            if key in self.images:
                raise ValueError(f"an image before has the {field} {quoted(entry[field])} too")
            self.images[key] = AnnotatedImage(name, self._where, str(entry["split"]), captions)

        self._each(path, self._content(path), "images", add)

    def add_images(self, path: Path) -> None:
        """The images that a file lists, of which nothing is said."""
        self._open(path)

    def add_instances(self, path: Path) -> None:
        """A file of images, of categories and of annotations with `bbox` and `category_id`; crowds do not count."""

        def add_category(_: int, entry: dict[str, Any]) -> None:
            self.categories[entry["id"]] = _words(entry["name"], "name")

        def add(_: int, entry: dict[str, Any]) -> None:
            if entry.get("iscrowd"):
                self._crowds.add(entry.get("id"))
                return
            category = entry["category_id"]
            if category not in self.categories:
                raise ValueError(f"there is no category {quoted(category)}")
            box = _box(entry["bbox"])
            self._image(entry).objects.append(Region(box, str(category), self.categories[category]))
            if "id" in entry:
                self._boxes[entry["id"]] = box, entry["image_id"]

        content = self._open(path)
        self._each(path, content, "categories", add_category)
        self._each(path, content, "annotations", add)

    def add_phrases(self, path: Path) -> None:
        """Annotations with a text and a box, in COCO's form or a bare list, JSON or pickle; read after the instances.

        The text is `caption`, `phrase`, or each of `sentences`; the box is `bbox` or that of the instance `ann_id`.
        """

        def add(number: int, entry: dict[str, Any]) -> None:
            """Each text of an entry as a phrase of its image; ValueError if entry and instance do not fit."""
            if "bbox" not in entry and not self._boxes and not self._crowds:
                raise UserError(f"{path} names instances by their ann_id: pass COCO's file of instances too.")
            if "bbox" not in entry and entry["ann_id"] not in self._boxes:
                kind = "is a crowd, which has no box" if entry["ann_id"] in self._crowds else "is not there"
                raise ValueError(f"the instance {quoted(entry['ann_id'])} {kind}")
            box, image = (_box(entry["bbox"]), None) if "bbox" in entry else self._boxes[entry["ann_id"]]
            if image is not None and str(image) != str(entry["image_id"]):
                raise ValueError(
                    f"its image_id is {quoted(entry['image_id'])}, and {quoted(image)} that of its instance"
                )
            name = _id(entry, number)
            texts = [_words(text, "phrase") for text in _phrases(entry)]
            if not texts:
                raise ValueError("it has no sentences")
            split = _clean(entry.get("split", ""))
            self._image(entry).phrases.extend(Phrase(box, name, text, self._where, split) for text in texts)

        content = self._open(path)
        self._each(path, {"annotations": content} if isinstance(content, list) else content, "annotations", add)

    def add_questions(self, questions: Path, annotations: Path | None) -> None:
        """Both files of VQA: the questions, and annotations with the answers of several people, if there are any."""
        texts: dict[str, str] = {}
        images: dict[str, Any] = {}
        named, answered = set[str](), set[str]()

        def add_text(_: int, entry: dict[str, Any]) -> None:
            name, text = str(entry["question_id"]), _words(entry["question"], "question")
            if name in texts:
                raise ValueError(f"a question before has the question_id {quoted(entry['question_id'])} too")
            texts[name], images[name] = text, entry.get("image_id")
            if annotations is None:
                self._image(entry).questions.append(Question(name, text, {}))

        def add(_: int, entry: dict[str, Any]) -> None:
            """The answers to a question; ValueError if annotation and question do not fit."""
            name = str(entry["question_id"])
            named.add(name)
            if name not in texts:
                raise ValueError(
                    f"{questions.name}, whose answers these should be, has no question {quoted(entry['question_id'])}"
                )
            if name in answered:
                raise ValueError(f"an annotation before has the question_id {quoted(entry['question_id'])} too")
            if images[name] is not None and str(images[name]) != str(entry["image_id"]):
                raise ValueError(
                    f"its image_id is {quoted(entry['image_id'])}, and {quoted(images[name])} that of its question"
                )
            if not isinstance(entry["answers"], list):
                raise ValueError(f"its answers are {quoted(entry['answers'])}, not a list")
            answers = soft_scores(_clean(answer["answer"]) for answer in entry["answers"])
            kind = answer_kind(texts[name], entry.get("question_type") or "", entry.get("answer_type") or "")
            self._image(entry).questions.append(Question(name, texts[name], answers, kind))
            answered.add(name)

        self._each(questions, self._open(questions), "questions", add_text)
        if annotations is None:
            return
        self._each(annotations, self._open(annotations), "annotations", add)
        if left := len(texts.keys() - named):
            print(f"Questions of {questions} that are left out, since {annotations} has no annotation of them: {left}.")

    def _content(self, path: Path) -> Any:
        return self._contents.pop(path) if path in self._contents else read_content(path)

    def _open(self, path: Path) -> Any:
        """Content of a file; the images it lists are known from now on."""
        content = self._content(path)
        if isinstance(content, dict) and "images" in content:

            def add(_: int, entry: dict[str, Any]) -> None:
                name = str(entry["file_name"])
                if (known := self.images.setdefault(entry["id"], AnnotatedImage(name, self._where))).file_name != name:
                    raise ValueError(f"the image {quoted(entry['id'])} has been {quoted(known.file_name)} before")

            self._each(path, content, "images", add)
        return content

    def _image(self, entry: dict[str, Any]) -> AnnotatedImage:
        name = entry["image_id"]
        if name not in self.images:  # ids may be numbers in one list and texts in the other
            name = str(name) if isinstance(name, int) else int(name) if str(name).isdecimal() else name
            name = name if name in self.images else entry["image_id"]
        if name not in self.images:
            if self.find is None:
                raise ValueError(f"no file lists an image {quoted(name)}")
            self.images[name] = AnnotatedImage(str(self.find(name)), self._where)
        return self.images[name]

    def _each(self, path: Path, content: Any, key: str, use: Callable[[int, dict[str, Any]], None]) -> None:
        """Calls use(number, entry) for the list `key` of a file."""
        listed = content.get(key) if isinstance(content, dict) else None
        if not isinstance(listed, list):
            raise UserError(f"{path} has no list {key!r}: name a file in COCO's format.")
        for number, entry in enumerate(tqdm(listed, desc=f"{path.name}: {key}", mininterval=1)):
            self._where = f"{path}, {key}[{number}]"
            try:
                use(number, entry)
            except UserError:
                raise
            except KeyError as error:
                self.bad.add(self._where, f"it has no {error}")
            except (ValueError, TypeError, AttributeError) as error:
                self.bad.add(self._where, str(error))


def read_content(path: Path) -> Any:
    """Content of a JSON file or, by its ending, of a pickle of plain values, of which nothing is executed."""
    if path.suffix not in (".p", ".pkl", ".pickle"):
        return read_json(path)
    try:
        with open(path, "rb") as file:
            return load_plain_pickle(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is not a pickle of plain values ({error}); check how it was made.") from error


def read_json(path: Path) -> Any:
    """Content of a JSON file without the outlines of objects, which fill most of COCO's; UserError if it is none."""

    def without_outline(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = unrepeated(pairs)
        entry.pop("segmentation", None)
        return entry

    try:
        return json.loads(read_text(path), object_pairs_hook=without_outline)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except RepeatedKeyError as error:
        raise UserError(f"{path} cannot be used: of an object, {error}; remove one.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file ({error}); check how it was made.") from error


def soft_scores(answers: Iterable[str]) -> dict[str, float]:
    """VQA's soft score of each different answer, best first: an answer is surely right if enough people gave it.

    min(1, n / 3) for n people, averaged over leaving each of the N people out (Antol et al. 2015); with ten people 0.3,
    0.6, 0.9, 1.0. Of fewer than four people the share that gave the answer. ValueError without answers.
    """
    counts = Counter(answer for answer in answers if answer)
    people = counts.total()
    if not people:
        raise ValueError("the question has no answers")

    def score(n: int) -> float:
        if people < 4:
            return n / people
        return (n * min(1.0, (n - 1) / 3) + (people - n) * min(1.0, n / 3)) / people

    return {answer: round(score(n), 2) for answer, n in counts.most_common()}


def answer_kind(question: str, question_type: str, answer_type: str) -> str:
    """What kind of question it is: wrong answers for matching are those to questions of the same kind."""
    if answer_type == YES_NO:
        return YES_NO
    return HOW_MANY if normalize_question(question).startswith(HOW_MANY) else question_type or OTHER


def group_answers(counts: Counter[tuple[str, str]]) -> dict[str, list[str]]:
    """Kind of question -> answers, at least two each, the frequent ones first: content of type2ans.json.

    Each answer belongs to the kind that it answers most often, as it is looked up by answer. Kinds with a single answer
    become part of `other`; `other` and `how many` are always there.

    Args:
        counts: how often each (answer, kind) occurs.
    """
    kind_of: dict[str, str] = {}
    for (answer, kind), _ in counts.most_common():
        kind_of.setdefault(answer, kind)
    groups: dict[str, list[str]] = {OTHER: [], HOW_MANY: []}
    for answer, kind in kind_of.items():
        groups.setdefault(kind, []).append(answer)
    for kind in [kind for kind, answers in groups.items() if kind not in NO_ANSWERS and len(answers) < 2]:
        groups[OTHER] += groups.pop(kind)
    for kind, fillers in NO_ANSWERS.items():
        more = [answer for answer in fillers if answer not in groups[kind]]
        groups[kind] += more[: max(0, 2 - len(groups[kind]))]
    return groups


def _clean(text: Any) -> str:
    """Text that fits into a column: no tabs and line breaks, nor what separates items."""
    if not isinstance(text, str):
        raise ValueError(f"{quoted(text)} is not a text")
    if not whole_characters(text):
        raise ValueError(f"{quoted(text)} holds half of a surrogate pair, which is not a character")
    return " ".join(text.replace(SEPARATOR, "&").replace(CONFIDENCE_MARK, " ").split())


def _words(text: Any, what: str) -> str:
    """Clean text; ValueError if nothing is left of it in the form the model reads."""
    text = _clean(text)
    require_words(normalize_question(text), what)
    return text


def _phrases(entry: dict[str, Any]) -> list[Any]:
    for key in ("caption", "phrase"):
        if key in entry:
            return [entry[key]]
    return [s.get("sent", s.get("raw")) if isinstance(s, dict) else s for s in entry["sentences"]]


def _box(values: Any) -> Box:
    """x, y, width, height; ValueError unless they are numbers. COCO itself has boxes without an area."""
    try:
        x, y, width, height = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the bbox {quoted(values)} is not x, y, width, height") from error
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"the bbox {quoted(values)} is not finite")
    return x, y, width, height


def _id(entry: dict[str, Any], number: int, key: str = "id") -> str:
    return _clean(str(entry.get(key, entry.get("ref_id", number))))
