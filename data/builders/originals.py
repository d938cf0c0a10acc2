"""The original files of tasks with images -> entries of data files, by split."""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.builders.coco_annotations import AnnotatedImage, Annotations, BadEntries, read_content
from data.builders.manifests import Entry, ImageFolders, unreadable
from data.snli_ve import WORDS
from data.table_files import image_files
from data.text import normalize_caption, require_words
from data.vqa_gen import join_answers
from utils.constants import SEPARATOR
from utils.errors import UserError, quoted
from utils.files import json_object, read_text, text_lines

Split = dict[str, list[Entry]]
Layouts = Mapping[str, Callable[[Any], bool]]
SPLITS = ("train", "val", "test")
LISTS = ("images", "annotations", "questions", "categories")  # what holds entries in all layouts
LOOKED_AT = 20  # entries of a list that tell what a file is
KARPATHY = {"restval": "train"}  # images that belong to training since COCO's validation images were shared out


def given(flags: argparse.Namespace) -> dict[str, list[Path]]:
    """The files of each split; those of `--annotations`, which name the splits of their entries, are those of ""."""
    splits = {split: getattr(flags, split) or [] for split in SPLITS}
    splits[""] = getattr(flags, "annotations", None) or []
    if splits[""] and any(splits[split] for split in SPLITS):
        raise UserError("--annotations names the splits itself: leave --train, --val and --test out.")
    found = {split: paths for split, paths in splits.items() if paths}
    for split, paths in found.items():
        if repeated := [path for path in paths if paths.count(path) > 1]:
            raise UserError(f"--{split or 'annotations'} names {repeated[0]} twice: leave one out.")
    if not found:
        raise UserError("There is nothing to build from: name files with --train, --val or --test.")
    return found


def read_lines(path: Path) -> list[str]:
    """Lines of a text file; UserError if it cannot be read."""
    try:
        return text_lines(read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error


# What annotation files are.


def _lists(key: str, *keys: str) -> Callable[[Any], bool]:
    """A test for objects with a list `key` whose entries have these keys."""

    def test(content: Any) -> bool:
        listed = content.get(key) if isinstance(content, dict) else None
        if not isinstance(listed, list):
            return False
        return not listed or any(isinstance(entry, dict) and entry.keys() >= set(keys) for entry in listed[:LOOKED_AT])

    return test


def _phrases(content: Any) -> bool:
    content = {"annotations": content} if isinstance(content, list) else content
    kinds = (_lists("annotations", text) for text in ("caption", "phrase", "sentences"))
    return any(kind(content) for kind in kinds)


CAPTIONS: Layouts = {
    "Karpathy's split file (images with filename, split and sentences)": _lists("images", "sentences", "split"),
    "COCO's captions (annotations with image_id and caption)": _lists("annotations", "image_id", "caption"),
    "COCO's list of images (images with id and file_name)": _lists("images", "id", "file_name"),
}
VQA: Layouts = {
    "VQA's questions (questions with question_id, image_id and question)": _lists("questions", "question"),
    "VQA's annotations (annotations with question_id, image_id and answers)": _lists("annotations", "answers"),
}
REFS: Layouts = {
    "COCO's instances (annotations with bbox, and categories)": lambda content: (
        _lists("categories")(content) and _lists("annotations", "bbox")(content)
    ),
    "refs or phrases (a list of entries with image_id, ann_id or bbox, and sentences, phrase or caption)": _phrases,
}


def layout(path: Path, content: Any, known: Layouts) -> str:
    """The first of the known layouts that a file has; UserError that says what it has instead."""
    entries = content if isinstance(content, dict) else {}
    wrong = [key for key in LISTS if not isinstance(entries.get(key, []), list)]
    for name, test in known.items():
        if test(content) and not wrong:
            return name
    found = _shown(content)
    if isinstance(content, dict) and content:
        found = f"an object with {', '.join(f'{key!r} ({_shown(value)})' for key, value in list(content.items())[:10])}"
    raise UserError(f"{path} is none of {', '.join(known)}: it holds {found}; name another file.")


def _shown(value: Any) -> str:
    if not isinstance(value, list):
        return f"a value of the type {type(value).__name__}"
    keys = f" with {', '.join(map(repr, list(value[0])[:10]))}" if value and isinstance(value[0], dict) else ""
    return f"a list of {len(value)}{keys}"


def _sorted_by_layout(annotations: Annotations, paths: Sequence[Path], known: Layouts) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {name: [] for name in known}
    for path in paths:
        found[layout(path, annotations.peek(path), known)].append(path)
    return found


class Originals:
    """Reads annotation files for entries.

    Args:
        flags: of the program. bad: judges what cannot be used. splits: those of the task.
    """

    def __init__(self, flags: argparse.Namespace, bad: BadEntries, splits: Collection[str] = SPLITS) -> None:
        self.flags, self.bad, self.splits = flags, bad, splits
        self.folders = ImageFolders(getattr(flags, "images", None) or [])

    def _annotations(self) -> Annotations:
        return Annotations(self.bad, self.folders.find)

    def _located(self, images: Mapping[Any, AnnotatedImage]) -> list[tuple[str, AnnotatedImage, Path]]:
        """Id, what is said and file of each image.

        If bad entries are skipped, images that cannot be read are left out here, and not only when rows are written:
        references, document frequencies and candidates are made of these entries.
        """
        found = []
        for name, image in images.items():
            try:
                found.append((str(name), image, self.folders.find(image.file_name)))
            except ValueError as error:
                self.bad.add(image.where, str(error))
        if not self.bad.skip:
            return found
        with ThreadPoolExecutor(self.flags.workers) as pool:
            problems = pool.map(unreadable, [path for *_, path in found])
            seen = list(tqdm(problems, total=len(found), desc="images", unit="image", mininterval=1))
        for (_, image, _), problem in zip(found, seen, strict=True):
            if problem:
                self.bad.add(image.where, problem)
        return [entry for entry, problem in zip(found, seen, strict=True) if not problem]

    def _split(self, flag: str, own: str, where: str) -> str:
        """The split of an entry: that of the flag which names its file, or its own; '' if neither can be used."""
        if flag and own not in ("", flag, *(f"{flag}{part}" for part in "AB")):
            reason = f"it is of the split {own!r}, and --{flag} names its file: name it with --annotations"
        elif not flag and not own:
            raise UserError("A file of --annotations names no splits: pass it with --train, --val or --test.")
        elif not flag and own not in self.splits:
            reason = f"it has the split {own!r}: the splits of {self.flags.task} are {', '.join(self.splits)}"
        else:
            return flag or own
        self.bad.add(where, reason)
        return ""

    def captions(self, per_image: Sequence[str] = ("val", "test")) -> Split:
        """Rows of id and caption: an image's captions joined by `&&` in the splits `per_image`, else one by one.

        Captions are in lower case, as released. A test split may have images alone.
        """
        found: Split = {}
        for split, paths in given(self.flags).items():
            annotations = self._annotations()
            karpathy, coco, _ = (files := _sorted_by_layout(annotations, paths, CAPTIONS)).values()
            for path in sum(files.values(), []):
                add = annotations.add_images
                if path in karpathy:
                    add = annotations.add_split_captions
                elif path in coco:
                    add = annotations.add_captions
                add(path)
            used = {
                name: image
                for name, image in annotations.images.items()
                if image.captions or ((split or image.split) == "test" and not image.has_entries)
            }
            lacking = sum(not image.captions for name, image in annotations.images.items() if name not in used)
            if lacking:
                print(f"Images without a caption that are left out{f' of {split}' if split else ''}: {lacking}.")
            for name, image, path in self._located(used):
                where = self._split(split, KARPATHY.get(image.split, image.split), image.where)
                if not where:
                    continue
                texts = [(key, text.lower()) for key, text in image.captions]
                if where in per_image:
                    joined = SEPARATOR.join(text for _, text in texts)
                    texts = [(name, joined)]
                found.setdefault(where, []).extend(
                    Entry(image.where, {"id": key, "caption": text} if text else {"id": key}, path, name)
                    for key, text in texts
                )
        return found

    def questions(self) -> tuple[Split, list[str]]:
        """Rows of questions, and the answers to choose among: the `--answers` most frequent best ones of training.

        Training has a row for each of these answers to a question; validation has all answers in a row.
        """
        read: dict[str, list[tuple[str, AnnotatedImage, Path]]] = {}
        for split, paths in given(self.flags).items():
            annotations = self._annotations()
            questions, answers = _sorted_by_layout(annotations, paths, VQA).values()
            if split != "test" and len(questions) != len(answers):
                raise UserError(
                    f"--{split} has {len(questions)} files of questions and {len(answers)} of annotations: name them "
                    "in pairs."
                )
            for number, path in enumerate(questions):
                annotations.add_questions(path, answers[number] if number < len(answers) else None)
            read[split] = self._located(annotations.images)
        best = Counter(
            next(iter(question.answers)) for _, image, _ in read.get("train", []) for question in image.questions
        )
        candidates = [answer for answer, _ in best.most_common(self.flags.answers)]
        known = set(candidates)
        found: Split = {split: [] for split in read}
        without = 0
        for split, images in read.items():
            for name, image, path in images:
                for question in image.questions:
                    values = {"id": question.id, "question": question.text, "objects": ""}
                    refs = [question.answers] if question.answers else []
                    if split == "train":
                        refs = [{answer: score} for answer, score in question.answers.items() if answer in known]
                        without += not refs
                    rows = [{**values, "answers": join_answers(answers)} for answers in refs]
                    found[split] += [
                        Entry(image.where, row, path, name) for row in (rows if rows or split == "train" else [values])
                    ]
        if without:
            print(f"{without} training questions have none of the {len(candidates)} answers: they are left out.")
        return found, candidates

    def regions(self) -> Split:
        """Rows of phrases and boxes."""
        found: Split = {}
        for split, paths in given(self.flags).items():
            annotations = self._annotations()
            instances, phrases = _sorted_by_layout(annotations, paths, REFS).values()
            for path in instances:
                annotations.add_instances(path)
            for path in phrases:
                annotations.add_phrases(path)
            used = {name: image for name, image in annotations.images.items() if image.phrases}
            for name, image, path in self._located(used):
                numbers: Counter[str] = Counter()
                for region in image.phrases:
                    if not (where := self._split(split, region.split, region.where)):
                        continue
                    values = {"id": f"{region.id}_{numbers[region.id]}", "text": region.text}
                    numbers[region.id] += 1
                    found.setdefault(where, []).append(Entry(region.where, values, path, name, region.box))
        return found

    def entailment(self) -> Split:
        """Rows of SNLI-VE's JSON lines: sentence2 about the image Flickr30K_ID, whose caption is sentence1."""
        found: Split = {}
        for split, paths in given(self.flags).items():
            for path in paths:
                entries = [self._judged(f"{path}, line {n}", line) for n, line in enumerate(read_lines(path), 1)]
                found.setdefault(split, []).extend(entry for entry in entries if entry is not None)
        return found

    def _judged(self, where: str, line: str) -> Entry | None:
        if not line.strip():
            return None
        try:
            entry = json_object(line)
            caption = str(entry.get("captionID") or "")
            name = str(entry.get("Flickr30K_ID") or caption.partition("#")[0] or entry["Flickr30K_ID"])
            for key in ("sentence2", "sentence1"):
                if not isinstance(entry[key], str):
                    raise ValueError(f"its {key} is {quoted(entry[key])}, not a text")
            texts = [" ".join(entry[key].split()) for key in ("sentence2", "sentence1")]
            for text in texts:
                require_words(normalize_caption(text), "sentence")
            values = {"id": str(entry.get("pairID", where)), "hypothesis": texts[0], "caption": texts[1]}
            if (label := entry.get("gold_label")) is not None:
                if label not in WORDS:
                    raise ValueError(f"the gold_label {quoted(label)} is not one of {', '.join(WORDS)}")
                values["label"] = label
            return Entry(where, values, self.folders.find(name), name)
        except KeyError as error:
            self.bad.add(where, f"it has no {error}, which a line of SNLI-VE has")
        except ValueError as error:
            self.bad.add(where, str(error))
        return None


def classes(flags: argparse.Namespace) -> tuple[Split, list[str]]:
    """Rows of a tree with a folder for each class, and the names of the classes, in the order of the folders."""
    folders = {}
    for split, paths in given(flags).items():
        folders[split] = paths[0]
        if len(paths) > 1:
            raise UserError(f"--{split} has {len(paths)} folders: name one that has a folder for each class.")
    kinds: dict[str, list[Path]] = {}
    for split, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: --{split} names a folder with a folder for each class.")
        kinds[split] = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not kinds[split]:
            raise UserError(f"{folder} has no folders: --{split} names a folder with a folder for each class.")
    first = next(iter(kinds))
    names = _class_names(flags.class_names, [path.name for path in kinds[first]])
    numbers = {name: number for number, name in enumerate(names, 1)}
    found: Split = {}
    for split, places in kinds.items():
        for place in places:
            if place.name not in numbers:
                raise UserError(f"{place} is the folder of a class that --{first} does not have: remove it.")
            number = str(numbers[place.name])
            images, left_out = image_files(place, recursive=True)
            if left_out:
                print(left_out)
            found.setdefault(split, []).extend(
                Entry(str(path), {"name": names[place.name]}, path, number) for path in images
            )
    return found, list(names.values())


def _class_names(path: Path | None, folders: list[str]) -> dict[str, str]:
    """Folder -> name of its class: lines of `folder name`, JSON {folder: name}, or Keras's {"0": [folder, name]}."""
    if path is None:
        return {folder: folder for folder in folders}
    if path.suffix == ".json":
        content = read_content(path)
        if not isinstance(content, dict):
            raise UserError(f'{path} holds no object: write {{"folder": "name of the class"}}.')
        pairs = [value if isinstance(value, list) else (key, value) for key, value in content.items()]
    else:
        pairs = [line.split(maxsplit=1) for line in read_lines(path) if line.strip()]
    named = {str(pair[0]): " ".join(str(pair[1]).split()) for pair in pairs if len(pair) == 2}
    if lacking := [folder for folder in folders if not named.get(folder)]:
        raise UserError(f"{path} has no name for the class folder {lacking[0]!r}: write a line 'folder name'.")
    names = {folder: named[folder] for folder in folders}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        both = ", ".join(folder for folder in folders if names[folder] == twice[0])
        raise UserError(f"{path} has the name {twice[0]!r} for {both}: give every class a unique name.")
    return names


def coco_references(entries: Sequence[Entry]) -> bytes:
    """Captions of a split in COCO's annotation format, with the ids as strings, as the released file has them."""
    captions = [
        {"image_id": entry.image_id, "caption": caption}
        for entry in entries
        for caption in entry.values.get("caption", "").split(SEPARATOR)
    ]
    annotations = [{"id": number, **caption} for number, caption in enumerate(captions)]
    images = [{"id": entry.image_id} for entry in entries]
    content = {"info": {}, "licenses": [], "type": "captions", "images": images, "annotations": annotations}
    return json.dumps(content).encode()
