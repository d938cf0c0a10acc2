"""Predicts: `python predict.py caption INPUT... --checkpoint FILE [--output out.jsonl]` -> one record per item.

INPUT is image files, a folder of them, a JSONL file (keys `image`, `question` ..., optional `id`), a CSV, Parquet or
other table with these names, a COCO or VQA JSON file, or a TSV file with the released columns of the task; for draw and
summarise also a .txt file with one text per line, or a text itself. With --output, which may be JSONL, CSV or Parquet,
an interrupted run resumes. Exit code 1: items were skipped, 2: a wrong command line or file.
"""

import ofa_names  # isort: skip  # noqa: F401  (first: a user's `data` or `utils` is a sentence)

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from data.items import Item, Source, open_items
from data.table_files import column_names
from data.tasks import TASKS
from utils.errors import ItemError, UserError
from utils.files import RepeatedKeyError, check_folder, parse_json, whole_characters
from utils.options import path_of, positive, program_name, seed, setting
from utils.program import program
from utils.record_file import RecordFile

if TYPE_CHECKING:  # functions import what needs torch: a wrong command line shall not wait for it
    from models.predictor import OFAPredictor

LOG_SECONDS = 30  # between two lines of progress where there is no terminal


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        task: the one whose released TSV files it reads; "" = any.
        reads: what it calls a column, in the order of --selected-cols -> the task's name of the column.
        needed: what an item must have. field: a key that its records have and others do not.
        answer: (predictor, items by name, arguments) -> the results' keys of each item's record.
    """

    help: str
    task: str
    reads: dict[str, str]
    needed: tuple[str, ...]
    field: str
    answer: Callable[["OFAPredictor", dict[str, list[Any]], argparse.Namespace], list[dict[str, Any]]]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.reads)

    @property
    def selected(self) -> str:
        """Default of --selected-cols: the released columns; without a task all in order."""
        names = tuple(self.reads.values())
        return TASKS[self.task].select(names) if self.task else ",".join(str(n) for n in range(len(names)))


def _caption(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    return [{"caption": x.text, "score": x.score} for x in _list(p.caption(v["image"], **args.decoding))]


def _answer(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    answers = p.answer(v["image"], v["question"], [] if args.free else None, v["objects"], **args.decoding)
    return [{"answer": x.text, "score": x.score} for x in _list(answers)]


def _ground(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    boxes_found = _list(p.ground(v["image"], v["phrase"], args.n_best, **args.decoding))
    lists = [[boxes] if args.n_best == 1 else boxes for boxes in boxes_found]
    return [{"boxes": [[b.x0, b.y0, b.x1, b.y1] for b in boxes], "scores": [b.score for b in boxes]} for boxes in lists]


def _entail(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    labels = p.entail(v["image"], v["hypothesis"], v["premise"])
    return [{"entailment": x.text, "score": x.score} for x in _list(labels)]


def _classify(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    ranked = _list(p.classify(v["image"], top_k=args.top_k))
    return [{"labels": [x.text for x in labels], "scores": [x.score for x in labels]} for labels in ranked]


def _draw(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    records = []
    drawings = _list(p.draw(v["prompt"], args.n, **args.decoding))
    args.folder.mkdir(parents=True, exist_ok=True)
    for number, drawn in zip(v["number"], drawings, strict=True):
        images = [drawn] if args.n == 1 else drawn
        paths = []
        for k, image in enumerate(images):
            paths.append(_unused(args.folder, f"{number:06}_{k}"))
            image.save(paths[-1])
        records.append({"pictures": [str(path) for path in paths], "scores": [x.info["score"] for x in images]})
    return records


def _unused(folder: Path, name: str) -> Path:
    """The file NAME.png, or NAME_2.png and so on if there is one already: images of earlier runs stay."""
    suffixes = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
    return next(path for suffix in suffixes if not (path := folder / f"{name}{suffix}.png").exists())


def _summarize(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    return [{"summary": x.text, "score": x.score} for x in _list(p.summarise(v["text"], **args.decoding))]


def _generate(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    return [{"text": x.text, "score": x.score} for x in _list(p.generate(v["image"], v["prompt"], **args.decoding))]


def _list(results: Any) -> list[Any]:
    return results


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


# fmt: off
COMMANDS = {
    "caption": Command("describe images", "caption", _same("id", "image"), ("image",), "caption", _caption),
    "answer": Command("answer questions about images", "vqa_gen", _same("id", "image", "question", "objects"),
                      ("image", "question"), "answer", _answer),
    "ground": Command("find the box of a phrase", "refcoco", {**_same("id", "image"), "phrase": "text"},
                      ("image", "phrase"), "boxes", _ground),
    "entail": Command("decide whether an image entails a sentence", "snli_ve",
                      {**_same("id", "image", "hypothesis"), "premise": "caption"}, ("image", "hypothesis"),
                      "entailment", _entail),
    "classify": Command("classify images", "image_classify", _same("image"), ("image",), "labels",
                        _classify),
    "draw": Command("generate images from captions", "image_gen", {"id": "id", "prompt": "text"}, ("prompt",),
                    "pictures", _draw),
    "summarise": Command("summarize texts", "gigaword", {"text": "article"}, ("text",), "summary", _summarize),
    "generate": Command("follow any instruction", "", _same("id", "image", "prompt"), ("prompt",), "text", _generate),
}
# fmt: on
# Texts that a flag of the same name gives to items without one.
TEXTS = {"answer": ("question",), "ground": ("phrase",), "entail": ("hypothesis", "premise"), "generate": ("prompt",)}


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; SystemExit on a wrong one."""
    parser = argparse.ArgumentParser(program_name("predict.py"), description="Run a trained model on images and texts.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=f"{command.help[0].upper()}{command.help[1:]}.")
        _add_common(sub, name, command)
        for text in TEXTS.get(name, ()):
            sub.add_argument(f"--{text}", help=f"{text} for items without one")
    answer, ground, classify, draw = (commands.choices[name] for name in ("answer", "ground", "classify", "draw"))
    for sub in (answer, classify):
        sub.add_argument("--candidates", help="file of candidate answers (JSON, pickle, or one per line)")
    answer.add_argument("--free", action="store_true", help="answer with any text instead of a candidate")
    ground.add_argument("--n-best", type=positive, default=1, help="boxes per phrase (default %(default)s)")
    classify.add_argument("--top-k", type=positive, default=5, help="classes per image (default %(default)s)")
    draw.add_argument("--n", type=positive, default=1, help="images per caption (default %(default)s)")
    draw.add_argument("--vqgan", nargs=2, metavar=("CHECKPOINT", "YAML"), help="the VQGAN's last.ckpt and model.yaml")
    draw.add_argument(
        "--folder", type=path_of, default=Path("drawings"), help="folder for the images (default %(default)s)"
    )
    draw.add_argument("--seed", type=seed, default=7, help="random seed (default %(default)s)")
    args = parser.parse_args(argv)
    if getattr(args, "free", False) and args.candidates is not None:
        parser.error("--free and --candidates cannot be combined: leave one out.")
    if getattr(args, "candidates", None) == "":
        parser.error("--candidates is empty: name the file of the answers.")
    return args


def _add_common(sub: argparse.ArgumentParser, name: str, command: Command) -> None:
    several = "*" if name == "generate" else "+"
    tables = ".jsonl, .csv, .parquet, .json or .tsv files"
    input_help = f"images, folders, {tables}" if "image" in command.columns else f"{tables}, .txt or a text"
    sub.add_argument("input", nargs=several, metavar="INPUT", help=input_help)
    sub.add_argument("--recursive", action="store_true", help="read subfolders as well")
    sub.add_argument("--max-image-pixels", type=positive, help="larger images are skipped (default: 2 ** 28)")
    sub.add_argument("--checkpoint", required=True, help="fairseq file, Hugging Face folder or safetensors file")
    sub.add_argument(
        "--output", type=path_of, help=".jsonl, .csv or .parquet to write or resume (default: standard output)"
    )
    sub.add_argument("--columns", help="keys or columns of other names: image=file_name,id=key")
    sub.add_argument("--image-root", help="folder that paths of images in a table start from (default: the table's)")
    order = ",".join(command.columns)
    sub.add_argument("--selected-cols", help=f"numbers of the TSV columns {order} (default {command.selected})")
    sub.add_argument("--batch-size", type=positive, default=16, help="items per batch (default %(default)s)")
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    sub.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default %(default)s)")
    sub.add_argument(
        "--int8", action="store_true", help="int8 weights in the layers, which take a quarter of the memory"
    )
    sub.add_argument("--compile", action="store_true", help="compile the layers; the first batches take longer")
    sub.add_argument("--decoding", type=_json_object, default={}, help='generation options, e.g. {"beam": 1}')
    sub.add_argument(
        "--set", action="append", default=[], type=setting, metavar="NAME=VALUE", dest="overrides",
        help="override an option of the checkpoint, e.g. bpe_dir=utils/BPE",
    )  # fmt: skip


def _json_object(text: str) -> dict[str, Any]:
    try:
        return dict(parse_json(text).items())
    except RepeatedKeyError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    except (ValueError, AttributeError, RecursionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object") from None


@program("predict.py", "With --output, rerun the same command to resume.")
def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if items were skipped, 2 if nothing could be done."""
    return predict(parse_args(sys.argv[1:] if argv is None else argv))


def predict(args: argparse.Namespace) -> int:
    """Answers what is not answered yet; the exit code."""
    command = COMMANDS[args.command]
    selected = args.selected_cols or command.selected
    sources = [_source(path, args, command.columns, selected) for path in args.input]
    for source in sources:
        if source.left_out:
            print(source.left_out, file=sys.stderr)
    inputs = (*args.input, args.checkpoint)
    output = _output(args.output, command.field, inputs) if args.output else _Standard()
    if args.command == "draw":
        check_folder(args.folder, "--folder")
    predictor = _load(args)
    if args.command == "draw":
        import torch

        torch.manual_seed(args.seed)
    run = _Run(predictor, command, args, output, sum(source.size for source in sources) or 1)
    unread = _switched(predictor, command, on=False)  # as in evaluation
    empty = {name for name in _switched(predictor, command, on=True) if getattr(args, name, None) is None}
    with output:
        for source in sources:
            for item in source.read(unread, empty):
                run.add(item)
        if not sources:
            run.add(Item("the prompt"))
        run.flush()
    return run.finish()


def _source(path: str, args: argparse.Namespace, names: Sequence[str], selected: str) -> Source:
    columns = column_names(args.columns, names)
    if path.lower().endswith(".json"):
        from data.builders.json_items import open_json

        return open_json(path, names, columns, args.image_root)
    return open_items(path, names, selected, args.recursive, columns, args.image_root)


def _output(path: Path, field: str, inputs: Sequence[str]) -> RecordFile:
    if path.suffix.lower() not in (".csv", ".parquet"):
        return RecordFile(path, field, inputs)
    from data.record_table import RecordTable  # brings torch

    return RecordTable(path, field, inputs)


class _Run:
    """Items on their way from the inputs to the output.

    Args:
        output: its `ids` are (id, row) of what it holds already; without a row it is the first item with this id.
        total: number of items.
    """

    def __init__(
        self,
        predictor: "OFAPredictor",
        command: Command,
        args: argparse.Namespace,
        output: "RecordFile | _Standard",
        total: int,
    ) -> None:
        self.predictor, self.command, self.args, self.output = predictor, command, args, output
        self.waiting: list[tuple[Any, dict[str, Any], str]] = []  # id, values by name, where
        self.seen: set[Any] = set()
        self.nameless = False  # whether an item came whose id, if it has one, cannot be read
        self.number = self.written = self.skipped = 0
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, disable=not self.terminal, unit="item", dynamic_ncols=True)
        self.total, self.logged = total, time.monotonic()

    def add(self, item: Item) -> None:
        """Takes an item up unless it is answered already or cannot be read."""
        from data.text import has_words  # brings numpy, for which a wrong command line shall not wait

        item_id = self.number if item.id is None else item.id
        names = self.command.columns
        values: dict[str, Any] = {name: getattr(self.args, name, None) for name in names}
        values |= {**item.values, "number": self.number}
        first = item_id not in self.seen
        values["row"] = None if first and not self.nameless else self.number
        done = (item_id, self.number) in self.output.ids or (first and (item_id, None) in self.output.ids)
        self.number += 1
        self.seen.add(item_id)
        self.nameless |= bool(item.problem) and item.id is None
        try:
            if item.problem:
                raise UserError(item.problem)
            if done:
                self.progress(1)
                return
            if missing := [name for name in self.command.needed if values[name] is None]:
                raise UserError(f"there is no {missing[0]!r}")
            if any(
                isinstance(values[n], str) and not has_words(values[n]) for n in self.command.needed if n != "image"
            ):
                raise UserError("the text has no words")
            if any(isinstance(text, str) and not whole_characters(text) for n, text in values.items() if n != "image"):
                raise UserError("the text holds half of a surrogate pair, which is not a character")
            if values.get("image") is not None:
                values["image"] = self.predictor.read_image(values["image"])
        except ValueError as error:
            self.skip(item.where, error)
            return
        self.waiting.append((item_id, values, item.where))
        if len(self.waiting) >= self.args.batch_size:
            self.flush()

    def flush(self) -> None:
        """Answers what is waiting."""
        waiting, self.waiting = self.waiting, []
        self.answer(waiting)

    def answer(self, items: list[tuple[Any, dict[str, Any], str]]) -> None:
        """Answers items and writes their records; where one cannot be answered, the others are, one by one."""
        if not items:
            return
        columns = {name: [values[name] for _, values, _ in items] for name in items[0][1]}
        try:
            results = self.command.answer(self.predictor, columns, self.args)
        except ItemError as error:
            if len(items) == 1:
                self.skip(items[0][2], error)
            else:
                for item in items:
                    self.answer([item])
            return
        for (item_id, values, _), result in zip(items, results, strict=True):
            row = {} if values["row"] is None else {"row": values["row"]}
            self.output.write((json.dumps({"id": item_id, **result, **row}) + "\n").encode("ascii"))
        self.written += len(items)
        self.progress(len(items))

    def skip(self, where: str, error: ValueError) -> None:
        """Reports an item that cannot be answered."""
        reason = " ".join(str(error).split()).rstrip(".")
        tqdm.write(f"{reason if where in reason else f'{where}: {reason}'}; skipped.", file=sys.stderr)
        self.skipped += 1
        self.progress(1)

    def progress(self, count: int) -> None:
        """Moves the bar or, in a log, writes a line now and then."""
        self.bar.update(count)
        if not self.terminal and time.monotonic() - self.logged >= LOG_SECONDS:
            self.logged = time.monotonic()
            print(f"{self.number - len(self.waiting)} of {self.total} items", file=sys.stderr)

    def finish(self) -> int:
        """Says how many there were; the exit code."""
        self.bar.close()
        before = self.number - self.written - self.skipped
        print(f"{self.written} written, {self.skipped} skipped, {before} there before.", file=sys.stderr)
        return int(self.skipped > 0)


class _Standard:
    """Standard output as a `RecordFile` without records."""

    ids: frozenset[Any] = frozenset()

    def __enter__(self) -> "_Standard":
        if sys.stdout is None:
            raise UserError("Standard output is closed: pass a file with --output.")
        return self

    def write(self, lines: bytes) -> None:
        sys.stdout.buffer.write(lines)
        sys.stdout.flush()

    def __exit__(self, *_: object) -> None:
        """Leaves it open."""


def _load(args: argparse.Namespace) -> "OFAPredictor":
    overrides = dict(args.overrides)
    if reserved := overrides.keys() & {"device", "dtype", "batch_size", "vqgan", "max_image_pixels", "compile", "int8"}:
        name = sorted(reserved)[0]
        raise UserError(f"--set {name}=... has its own flag: pass --{name.replace('_', '-')}.")
    if args.max_image_pixels:
        overrides["max_image_pixels"] = args.max_image_pixels
    if getattr(args, "candidates", None):
        overrides["ans2label_file"] = args.candidates
    if getattr(args, "vqgan", None):
        overrides["vqgan"] = tuple(args.vqgan)
    from models.predictor import OFAPredictor

    own = {name: getattr(args, name) for name in ("dtype", "batch_size", "compile", "int8")}
    return OFAPredictor.load(args.checkpoint, args.device, **own, **overrides)


def _switched(predictor: "OFAPredictor", command: Command, on: bool) -> set[str]:
    """Columns of a TSV file that models read only with an option, and whether this one does."""
    if not command.task:
        return set()
    row = TASKS[command.task]
    config = predictor.description.config(row.config, command.task)
    columns = [(name, row.switched.get(column)) for name, column in command.reads.items()]
    return {name for name, option in columns if option and getattr(config, option) == on}


if __name__ == "__main__":
    sys.exit(main())
