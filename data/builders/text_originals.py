"""The original files of tasks without images -> entries: GLUE's tables, and parallel texts."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from data.builders.coco_annotations import BadEntries
from data.builders.manifests import Entry
from data.builders.originals import Split, given, read_lines
from data.gigaword import DIGIT
from data.glue import GLUE
from data.tasks import TASKS
from data.text import normalize_caption, require_words
from utils.errors import UserError, quoted

PAIR = {"first": "sentence1", "second": "sentence2", "label": "label"}
# Task -> what it reads -> the official table's name for it.
GLUE_COLUMNS: dict[str, Mapping[str, str]] = {
    "cola": {"sentence": "sentence", "label": "label"},
    "mnli": {**PAIR, "label": "gold_label"},
    "mrpc": {"first": "#1 String", "second": "#2 String", "label": "Quality"},
    "qnli": {"question": "question", "sentence": "sentence", "label": "label"},
    "qqp": {"first": "question1", "second": "question2", "label": "is_duplicate"},
    "rte": PAIR,
    "sst2": {"sentence": "sentence", "label": "label"},
}
COLA_HEADER = ("source", "label", "mark", "sentence")  # the official file has none
# What the official tables call the labels of the released files.
LABELS = {"mnli": {"neutral": "0", "entailment": "1", "contradiction": "2"}}


def glue(task: str, flags: argparse.Namespace, bad: BadEntries) -> Split:
    """Rows of the official tables; those of the test split need no label."""
    found: Split = {}
    for split, paths in given(flags).items():
        for path in paths:
            found.setdefault(split, []).extend(_glue_rows(task, split, path, bad))
    return found


def _glue_rows(task: str, split: str, path: Path, bad: BadEntries) -> list[Entry]:
    lines = read_lines(path)
    header = [name.strip() for name in lines[0].split("\t")] if lines else []
    wanted, start = GLUE_COLUMNS[task], 1
    if task == "cola" and len(header) == len(COLA_HEADER) and "sentence" not in header:
        header, start = list(COLA_HEADER), 0
    needed = [name for key, name in wanted.items() if key != "label" or split != "test"]
    if lacking := [name for name in needed if name not in header]:
        shown = ", ".join(map(repr, header))[:300]
        raise UserError(
            f"{path} is not GLUE's table of {task}: no column {lacking[0]!r} is among its first line's, {shown}."
        )

    def values(line: str) -> dict[str, str]:
        """What the task reads of a line; ValueError for a bad one."""
        cells = line.split("\t")
        if len(cells) != len(header):
            raise ValueError(f"the row has {len(cells)} columns, the first line {len(header)}")
        row = dict(zip(header, cells, strict=True))
        texts = {key: " ".join(row[name].split()) for key, name in wanted.items() if name in row}
        for key, text in texts.items():
            if key != "label":
                require_words(text, key)
        if (label := texts.get("label")) is None:
            return texts
        texts["label"] = LABELS.get(task, {}).get(label, label)
        if texts["label"] not in GLUE[task].words:
            known = ", ".join(LABELS.get(task, GLUE[task].words))
            raise ValueError(f"the label {quoted(label)} is not one of {known}")
        return texts

    numbered = [(f"{path}, line {number}", line) for number, line in enumerate(lines[start:], start + 1)]
    return _entries(numbered, values, bad)


def parallel(flags: argparse.Namespace, bad: BadEntries) -> Split:
    """Rows of parallel text files, article and summary a line each; those of the test split need no summaries."""
    found: Split = {}
    for split, paths in given(flags).items():
        if len(paths) != 2 and not (split == "test" and len(paths) == 1):
            raise UserError(f"--{split} has {len(paths)} files: name the articles and their summaries.")
        texts = [read_lines(path) for path in paths]
        if len({len(lines) for lines in texts}) > 1:
            raise UserError(
                f"{paths[0]} has {len(texts[0])} lines and {paths[1]} {len(texts[1])}: a summary must be on the line "
                "of its article."
            )
        lines = ["\n".join(row) for row in zip(*texts, strict=True)]
        numbered = [(f"{paths[0]}, line {number}", line) for number, line in enumerate(lines, 1)]
        found[split] = _entries(numbered, partial(_pair, paths), bad)
    return found


def _pair(paths: Sequence[Path], line: str) -> dict[str, str]:
    """Article and summary of a line; ValueError for a bad one, which names the file if that is not the articles'."""
    pair = {name: " ".join(text.split()) for name, text in zip(TASKS["gigaword"].names, line.split("\n"), strict=False)}
    for (name, text), path in zip(pair.items(), paths, strict=True):
        try:
            require_words(normalize_caption(text).replace(DIGIT, "0"), name)
        except ValueError as error:
            raise ValueError(str(error) if path == paths[0] else f"{error}, in {path}") from error
    return pair


def _entries(
    lines: Sequence[tuple[str, str]], values: Callable[[str], Mapping[str, str]], bad: BadEntries
) -> list[Entry]:
    """The entries of lines with their places."""
    found = []
    for where, line in lines:
        try:
            found.append(Entry(where, values(line)))
        except ValueError as error:
            bad.add(where, str(error))
    return found
