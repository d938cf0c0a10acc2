"""Checks a data file before a run does: `python -m data.validate TASK FILE.tsv [--candidates ANSWERS]`."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data import tables
from data.answers import AnswerConfig, read_answers
from data.base import OFADataset
from data.images import MAX_PIXELS
from data.sample import LYING, Sample, SkippedRow
from data.tasks import PRETRAINING, TASKS, RowKind, Task
from data.text import Vocabulary
from utils.errors import ADVICE, UserError, quoted
from utils.options import not_negative, path_of, positive, program_name
from utils.predictions import leaderboard_id
from utils.servers import Server

ROW_KINDS: Mapping[str, RowKind] = {**TASKS, **PRETRAINING}  # what can be checked
SHOWN = 20  # bad rows, and unknown words, printed in full
BPE_DIR = Path(__file__).parents[1] / "utils" / "BPE"


def open_rows(
    task: str,
    path: Path,
    selected_cols: str | None,
    answers: str | None,
    vocab: Vocabulary,
    negatives: str | None = None,
    code_image_size: int | None = None,
    **options: Any,
) -> OFADataset:
    """A file as the task's training rows, read as strictly as a row can be.

    Args:
        selected_cols: columns of a TSV file; None = those of the released scripts. answers: file of the answer set.
        negatives: folder of wrong texts, without which rows of `pretrain` are read without matching.
        code_image_size: side of the images that image codes describe (pixels); None = the task's default.
        options: of `DataConfig`, as training has them.

    Raises:
        UserError: a file that cannot be opened, or a wrong number of columns.
    """
    row_kind = ROW_KINDS[task]
    known = {f.name for f in fields(row_kind.config)}
    task_options = {"code_image_size": code_image_size, "ans2label_file": answers, "neg_sample_dir": negatives}
    flags = {
        "code_image_size": "--code-image-size",
        "ans2label_file": "--candidates",
        "neg_sample_dir": "--neg-sample-dir",
    }
    if unused := [flags[name] for name, value in task_options.items() if value is not None and name not in known]:
        raise UserError(f"{unused[0]} has no meaning for rows of {task}: leave it out.")
    options |= {name: value for name, value in task_options.items() if value is not None}
    config = row_kind.config(skip_bad_rows=True, **options)
    arguments: dict[str, Any] = {}
    if row_kind.checks_answers and answers and isinstance(config, AnswerConfig):
        arguments["answers"] = read_answers(config)
    split = "train" if "neg_sample_dir" in options else "check"
    rows = tables.open_rows(str(path), selected_cols or row_kind.selected_cols, row_kind, config)
    return row_kind.dataset(rows, vocab, config, split, **arguments)


class Found(NamedTuple):
    """What a row is like: what is wrong with it (file, line, reason; None = nothing), its unknown words, its id.

    That an image is stored turned is no fault; the message ends with `LYING`.
    """

    message: str | None
    unknown: list[str]
    id: str = "0"


class _Checked(Dataset[Found]):
    """What the rows of a data set are like."""

    def __init__(self, dataset: OFADataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Found:
        unknown = self.dataset.vocab.unknown_words
        unknown.clear()
        item = self.dataset[index]
        if isinstance(item, SkippedRow):
            return Found(item.message.removesuffix(ADVICE), [])
        message = _outside_answers(self.dataset, item) or min(item.get("image_notes", ()), default=None)
        return Found(message, list(unknown), item["id"])


def look_at_rows(dataset: OFADataset, workers: int) -> Iterator[Found]:
    """What each row is like, in order."""
    yield from DataLoader(_Checked(dataset), batch_size=None, num_workers=workers)


def _outside_answers(dataset: OFADataset, sample: Sample) -> str | None:
    """Evaluation tolerates an answer outside the set, a check reports it."""
    if sample["target"].ne(dataset.vocab.pad).any():
        return None
    answer = max(sample["extras"]["ref_dict"], key=sample["extras"]["ref_dict"].get)
    place = f"{dataset.rows.path}, line {dataset.rows.line(sample['row'])}"
    return f"{place}: the answer {quoted(answer)} is not in the answer set"


def main(argv: list[str] | None = None) -> int:
    """0 if all rows are good, 1 if some are not, 2 if the file cannot be checked."""
    parser = argparse.ArgumentParser(
        program_name("python -m data.validate"), description="Check every row of a data file."
    )
    parser.add_argument("task", choices=ROW_KINDS, help="what the file is for")
    parser.add_argument("file", type=path_of, help="the TSV, CSV or JSONL file")
    parser.add_argument("--selected-cols", help="columns in the order the task reads them (default: as released)")
    parser.add_argument("--columns", help="columns of a CSV or JSONL file: image=file_name,text=caption")
    parser.add_argument("--image-root", help="folder that paths of images start from (default: the file's own)")
    parser.add_argument("--candidates", help="the answer set: a file as --ans2label-file takes it")
    parser.add_argument("--neg-sample-dir", help="wrong texts for matching, checked together with pretrain rows")
    parser.add_argument("--code-image-size", type=positive, help="side of the images that codes describe (pixels)")
    parser.add_argument("--bpe", default="gpt2", help="byte pair encoding: gpt2 or bert (default %(default)s)")
    parser.add_argument("--bpe-dir", default=BPE_DIR, help="vocabulary folder (default %(default)s)")
    parser.add_argument("--exif-orientation", action="store_true", help="images turned upright, as in training")
    parser.add_argument(
        "--max-image-pixels", type=positive, default=MAX_PIXELS, help="larger images are bad (default %(default)s)"
    )
    parser.add_argument("--workers", type=not_negative, default=2, help="reading processes (default %(default)s)")
    args = parser.parse_args(argv)
    try:
        vocab = Vocabulary.load(args.bpe_dir, args.bpe)
        arguments = args.selected_cols, args.candidates, vocab, args.neg_sample_dir, args.code_image_size
        options = {"exif_orientation": args.exif_orientation, "max_image_pixels": args.max_image_pixels}
        options |= {"columns": args.columns, "image_root": args.image_root}
        dataset = open_rows(args.task, args.file, *arguments, **options)
        row_kind = ROW_KINDS[args.task]
        return report(dataset, args.workers, row_kind.server if isinstance(row_kind, Task) else None)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


def report(dataset: OFADataset, workers: int, server: Server | None = None) -> int:
    """Prints the first bad rows, how many of each kind, unknown words and ids unfit for a server; 1 for bad rows."""
    reasons: Counter[str] = Counter()
    unknown: Counter[str] = Counter()  # word -> rows that have it
    with_unknown = lying = texts = 0
    text = ""  # the first id that is no number
    rows = tqdm(look_at_rows(dataset, workers), total=len(dataset), desc="rows", mininterval=1)
    for number, (message, words, row_id) in enumerate(rows):
        unknown.update(words)
        with_unknown += bool(words)
        if isinstance(leaderboard_id(row_id), str):
            texts += 1
            text = text or row_id
        if message is None:
            continue
        if message.endswith(LYING):
            lying += 1
            continue
        reasons[_kind(message, dataset.rows.line(number))] += 1
        if reasons.total() <= SHOWN:
            tqdm.write(message)
    print(f"{len(dataset) - reasons.total()} of {len(dataset)} rows are good.")
    for reason, count in reasons.most_common():
        print(f"{count} x {reason}")
    if unknown:
        print(f"{with_unknown} rows have words that the vocabulary cannot write: {listed(unknown)}.")
    if lying:
        print(f"{lying} good rows have an image that --exif-orientation would turn upright.")
    if texts and server:
        print(
            f"{texts} ids are not whole numbers, such as {quoted(text)}: {server.name} does not take them, training "
            "and evaluation do."
        )
    return int(bool(reasons))


def listed(words: Counter[str]) -> str:
    """The most frequent words, each with how often, and how many more there are."""
    shown = ", ".join(f"{quoted(word)} ({count:,})" for word, count in words.most_common(SHOWN))
    return f"{shown} and {len(words) - SHOWN:,} more" if len(words) > SHOWN else shown


def _kind(message: str, line: int) -> str:
    """A message without what differs from row to row: the place, quoted values and numbers."""
    reason = message.partition(f"line {line}: ")[2]
    return re.sub(r"'[^']*'|\"[^\"]*\"|\b\d[\d.,]*", "...", reason)


if __name__ == "__main__":
    sys.exit(main())
