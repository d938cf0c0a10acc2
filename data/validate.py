"""Checks a data file before a run does: `python -m data.validate TASK FILE [--candidates ANSWERS] [--html PAGE]`."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data import tables
from data.answers import AnswerConfig, encode_answers, read_answers
from data.base import OFADataset
from data.images import MAX_PIXELS
from data.tasks import PRETRAINING, TASKS, RowKind, Task
from data.text import Vocabulary
from data.validate_page import write_page
from data.validate_report import Report
from data.validate_rows import digests, look_at_rows
from utils.errors import UserError
from utils.files import check_folder
from utils.options import not_negative, path_of, positive, program_name
from utils.predictions import write_json
from utils.program import program
from utils.servers import Server

ROW_KINDS: Mapping[str, RowKind] = {**TASKS, **PRETRAINING}  # what can be checked
# Flags that are options of the rows.
OPTIONS = "exif_orientation", "max_image_pixels", "columns", "image_root", "max_src_length", "max_tgt_length"
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
        encode_answers(arguments["answers"], vocab.encode, vocab.unk)
    split = "train" if "neg_sample_dir" in options else "check"
    rows = tables.open_rows(
        str(path), selected_cols or (None if config.columns else row_kind.selected_cols), row_kind, config
    )
    return row_kind.dataset(rows, vocab, config, split, **arguments)


@program("python -m data.validate")
def main(argv: list[str] | None = None) -> int:
    """0 if all rows are good, 1 if some are not, 2 if the file cannot be checked."""
    parser = argparse.ArgumentParser(
        program_name("python -m data.validate"), description="Check every row of a data file."
    )
    parser.add_argument("task", choices=ROW_KINDS, help="what the file is for")
    parser.add_argument("file", type=path_of, help="the data file or folder")
    parser.add_argument("--selected-cols", help="columns in the order the task reads them (default: as released)")
    parser.add_argument("--columns", help="columns of a CSV or JSONL file: image=file_name,text=caption")
    parser.add_argument("--image-root", help="folder that paths of images start from (default: the file's own)")
    parser.add_argument("--candidates", help="file of the answer set, in a format of --ans2label-file")
    parser.add_argument("--neg-sample-dir", help="wrong texts for matching, checked together with pretrain rows")
    parser.add_argument("--code-image-size", type=positive, help="side of the images that codes describe (pixels)")
    parser.add_argument("--bpe", default="gpt2", help="byte pair encoding: gpt2 or bert (default %(default)s)")
    parser.add_argument("--bpe-dir", default=BPE_DIR, help="vocabulary folder (default %(default)s)")
    parser.add_argument("--exif-orientation", action="store_true", help="images turned upright, as in training")
    parser.add_argument(
        "--max-image-pixels", type=positive, default=MAX_PIXELS, help="larger images are bad (default %(default)s)"
    )
    parser.add_argument("--max-src-length", type=positive, help="limit of the source (default: the released recipe's)")
    parser.add_argument("--max-tgt-length", type=positive, help="limit of the target (default: train.py's)")
    parser.add_argument("--against", type=path_of, metavar="FILE", help="count the images that this file has too")
    parser.add_argument("--html", type=path_of, metavar="FILE", help="write a page that shows the first rows too")
    parser.add_argument("--json", type=path_of, metavar="FILE", help="write the whole report as JSON")
    parser.add_argument("--workers", type=not_negative, default=2, help="reading processes (default %(default)s)")
    args = parser.parse_args(argv)
    files = [path for path in (args.file, args.against) if path]
    vocab, row_kind = Vocabulary.load(args.bpe_dir, args.bpe), ROW_KINDS[args.task]
    for flag, path in (("--html", args.html), ("--json", args.json)):
        if path:
            check_folder(path.absolute().parent, flag)
            if path.exists() and any(data.exists() and path.samefile(data) for data in files):
                raise UserError(f"{flag}={path} is a data file: choose another name.")
    arguments = args.selected_cols, args.candidates, vocab, args.neg_sample_dir, args.code_image_size
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    options = {**getattr(row_kind, "recipe", {}), **given}
    dataset, *others = (open_rows(args.task, path, *arguments, **options) for path in files)
    server = row_kind.server if isinstance(row_kind, Task) else None
    report = look(dataset, args.workers, server, *others)
    print("\n".join(report.lines()))
    if args.json:
        write_json(report.as_dict(), args.json, indent=2)
    if args.html:
        write_page(report, dataset, args.html)
    return int(report.bad > 0)


def look(dataset: OFADataset, workers: int, server: Server | None = None, against: OFADataset | None = None) -> Report:
    """The report on the rows of a file; the first bad ones are printed as they are found.

    Args:
        workers: reading processes; the report is the same whatever their number.
        server: where answers go to be scored, if it needs integer ids.
        against: the rows of a file that should hold no image of this one.
    """
    report = Report(dataset, server)
    for found in tqdm(look_at_rows(dataset, workers), total=len(dataset), desc="rows", mininterval=1):
        if message := report.add(found):
            tqdm.write(message)
    if against is not None:
        report.compare(against.rows.path, digests(against, workers), against.rows.line)
    return report


if __name__ == "__main__":
    sys.exit(main())
