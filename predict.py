"""Predicts: `python predict.py caption INPUT... --checkpoint FILE [--output out.jsonl]` -> one record per item.

INPUT is image files, a folder of them, a JSONL file (keys `image`, `question` ..., optional `id`), a CSV, Parquet or
other table with these names, a COCO or VQA JSON file, or a TSV file with the released columns of the task; for draw and
summarise also a .txt file with one text per line, or a text itself. With --output, which may be JSONL, CSV or Parquet,
an interrupted run resumes, and --processes or torchrun share the work. Exit code 1: items were skipped, 2: a wrong
command line or file.
"""

import ofa_names  # isort: skip  # noqa: F401  (first: a user's `data` or `utils` is a sentence)

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.items import Item, Source, open_items
from data.table_files import column_names
from data.tasks import TASKS
from models import records
from models.model_flags import add_model_flags, add_pixel_flag, advice_for_shell, load_predictor
from utils.errors import UserError
from utils.files import RepeatedKeyError, check_folder, parse_json
from utils.options import path_of, positive, program_name, seed
from utils.part_files import folder_of
from utils.program import program
from utils.ranks import Ranks, are_several, start
from utils.record_file import RecordFile
from utils.record_origins import content_of
from utils.record_parts import RecordParts

if TYPE_CHECKING:  # functions import what needs torch: a wrong command line shall not wait for it
    from models.predictor import OFAPredictor
    from models.predictor.stream import Counts, Ledger

STEP = 1_000_003  # between the seeds of two chunks of drawings
# What does not change records: it may differ when a run is resumed. Of inputs the items' content is compared.
FREE = (
    "output", "processes", "num_workers", "json", "device", "folder", "input", "recursive", "batch_size",
    "max_image_pixels", "columns", "image_root", "selected_cols",
)  # fmt: skip


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
    return records.captions(p, v["image"], **args.decoding)


def _answer(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    names: list[str] | None = [] if args.free else None
    return records.answers(p, v["image"], v["question"], names, v["objects"], **args.decoding)


def _ground(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    return records.boxes(p, v["image"], v["phrase"], args.n_best, **args.decoding)


def _entail(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    return records.entailments(p, v["image"], v["hypothesis"], v["premise"])


def _classify(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    return records.labels(p, v["image"], None, args.top_k)


def _draw(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    written = []
    import torch

    torch.manual_seed(args.seed + STEP * (v["number"][0] // args.batch_size))  # whoever draws these, and when
    drawings: Any = p.draw(v["prompt"], args.n, **args.decoding)
    args.folder.mkdir(parents=True, exist_ok=True)
    for number, done, drawn in zip(v["number"], v["done"], drawings, strict=True):
        images = [drawn] if args.n == 1 else drawn
        paths = []
        for k, image in enumerate([] if done else images):
            paths.append(_unused(args.folder, f"{number:06}_{k}"))
            image.save(paths[-1])
        written.append({"pictures": [str(path) for path in paths], "scores": [x.info["score"] for x in images]})
    return written


def _unused(folder: Path, name: str) -> Path:
    """The file NAME.png, or NAME_2.png and so on if there is one already: images of earlier runs stay."""
    suffixes = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
    return next(path for suffix in suffixes if not (path := folder / f"{name}{suffix}.png").exists())


def _summarize(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    return records.summaries(p, v["text"], **args.decoding)


def _generate(p: "OFAPredictor", v: dict[str, list[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    return records.writings(p, v["image"], v["prompt"], **args.decoding)


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
    if args.output is None and (args.processes > 1 or are_several() or args.json):
        parser.error("several processes and --json need --output: standard output is for the records of one process.")
    if args.processes > 1 and are_several():
        parser.error("--processes and torchrun cannot be combined: leave one out.")
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
    add_pixel_flag(sub, "skipped")
    sub.add_argument("--checkpoint", required=True, help="fairseq file, Hugging Face folder or safetensors file")
    sub.add_argument(
        "--output", type=path_of, help=".jsonl, .csv or .parquet to write or resume (default: standard output)"
    )
    sub.add_argument("--columns", help="keys or columns of other names: image=file_name,id=key")
    sub.add_argument("--image-root", help="folder that paths of images in a table start from (default: the table's)")
    order = ",".join(command.columns)
    sub.add_argument("--selected-cols", help=f"numbers of the TSV columns {order} (default {command.selected})")
    sub.add_argument("--batch-size", type=positive, default=16, help="items per batch (default %(default)s)")
    sub.add_argument(
        "--processes", type=positive, default=1, help="processes that share the items (default %(default)s)"
    )
    sub.add_argument("--num-workers", type=positive, help="threads that read images (default: the cores, up to 8)")
    sub.add_argument("--json", action="store_true", help="print a summary as JSON")
    sub.add_argument("--decoding", type=_json_object, default={}, help='generation options, e.g. {"beam": 1}')
    add_model_flags(sub)


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
    argv = sys.argv[1:] if argv is None else argv
    with advice_for_shell():
        return predict(parse_args(argv), argv)


def predict(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Answers what is not answered yet; the exit code."""
    command = COMMANDS[args.command]
    selected = args.selected_cols or command.selected
    sources = [_source(path, args, command.columns, selected) for path in args.input]
    for path, source in zip(args.input, sources, strict=True):
        _check_texts(path, source, args, command)
    first = not are_several() or os.environ["RANK"] == "0"
    for source in sources if first and args.processes == 1 else ():
        if source.left_out:
            print(source.left_out, file=sys.stderr)
    output = _output(args, command) if args.output else None
    if args.command == "draw":
        check_folder(args.folder, "--folder")
    if args.processes > 1:
        return start([sys.executable, str(Path(__file__).resolve()), *argv_of_one(argv)], args.processes)
    sources = sources or [Source(1, lambda *_: iter([Item("the prompt")]))]
    if output is not None and (are_several() or folder_of(output.path).exists()):
        return _share(args, command, sources, output)
    predictor = load_predictor(args)
    from models.predictor.stream import Lines

    run = _Run(args, command, predictor, sources)
    if output is None:
        return _report(args, [run(Lines(None))])
    with output:
        counts = run(Lines(output))
    return _report(args, [counts])


def argv_of_one(argv: Sequence[str]) -> list[str]:
    """The command line of one of several processes: without --processes, which argparse reads from its last place."""
    return [*argv, "--processes=1"]


def _share(args: argparse.Namespace, command: Command, sources: Sequence[Source], output: RecordFile) -> int:
    """Answers this process's share of the items, or what a stopped run of several left; the first one merges."""
    ranks = Ranks() if are_several() else None
    total = sum(source.size for source in sources)
    if ranks is not None and ranks.rank:
        ranks.wait()
        if args.device in ("auto", "cuda"):
            args.device = _device(ranks)
    from models.predictor.stream import Counts, Parts, adopt

    parts = RecordParts(output.path, output.origins.digest if output.origins else "", total)
    predictor = load_predictor(args)
    run = _Run(args, command, predictor, sources)
    if ranks is None or not ranks.rank:
        adopt(parts, output, (item for source in sources for item in source.read(*run.columns)))
    if ranks is not None and not ranks.rank:
        ranks.ready()
    ledger = Parts(parts, ranks.rank if ranks else 0, ranks.world if ranks else 1, run.size)
    finished = ledger.finished()
    counts = run(ledger, finished, ranks)
    parts.close()
    if ranks is not None:
        summaries = ranks.finish(json.dumps(dataclasses.asdict(counts)))
        if ranks.rank:
            return 0
        all_counts = [Counts(**parse_json(text)) for text in summaries]
    else:
        all_counts = [counts]
    parts.merge(output.origins)
    with _output(args, command):
        pass  # a table is made of the records now
    return _report(args, all_counts, finished)


def _device(ranks: Ranks) -> str:
    """The GPU of this process, or the CPU."""
    import torch

    return f"cuda:{ranks.local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def _source(path: str, args: argparse.Namespace, names: Sequence[str], selected: str) -> Source:
    columns = column_names(args.columns, names)
    if path.lower().endswith(".json"):
        from data.builders.json_items import open_json

        return open_json(path, names, columns, args.image_root)
    return open_items(path, names, selected, args.recursive, columns, args.image_root)


def _check_texts(path: str, source: Source, args: argparse.Namespace, command: Command) -> None:
    """UserError if none of the items of an input can have a text that is needed."""
    if source.has is None:
        return
    for name in command.needed:
        if name not in source.has and getattr(args, name, None) is None:
            given = [f"--{name}"] if name in TEXTS.get(args.command, ()) else []
            raise UserError(
                f"{path} has no {name}: pass {' or '.join([*given, f'a table with a column {name!r}'])} (--columns "
                f"names one that is called otherwise)."
            )


def _output(args: argparse.Namespace, command: Command) -> RecordFile:
    inputs = (*args.input, args.checkpoint)
    if args.output.suffix.lower() not in (".csv", ".parquet"):
        return RecordFile(args.output, command.field, inputs, _run_of(args))
    from data.record_table import RecordTable  # brings torch

    return RecordTable(args.output, command.field, inputs, _run_of(args))


def _run_of(args: argparse.Namespace) -> dict[str, Any]:
    """What decides about the records of items, besides what these hold, for `Origins`."""
    free = {*FREE} - ({"batch_size"} if args.command == "draw" else set())  # of which chunks' seeds depend
    options = {name: value for name, value in vars(args).items() if name not in free}
    given = {f"set {name}": str(value) for name, value in options.pop("overrides")}
    files = {**given, "checkpoint": args.checkpoint, "candidates": getattr(args, "candidates", None)}
    files |= dict(zip(("vqgan", "vqgan yaml"), options.pop("vqgan", None) or (), strict=False))
    run = {**{name: _plain(value) for name, value in options.items()}, **given, "set": " ".join(sorted(given)) or None}
    there = {name: path for name, path in files.items() if path and (os.path.isfile(path) or os.path.isdir(path))}
    return run | {name: content_of(path) for name, path in there.items()}


def _plain(value: Any) -> str | None:
    """An option as JSON holds it; None where a switch is off."""
    if value is None or value is False:
        return None
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)


class _Run:
    """A command on all items."""

    def __init__(
        self, args: argparse.Namespace, command: Command, predictor: "OFAPredictor", sources: Sequence[Source]
    ) -> None:
        from models.predictor.stream import TEXTS_AT_ONCE

        self.args, self.command, self.predictor, self.sources = args, command, predictor, sources
        self.size = args.batch_size * (1 if "image" in command.columns or args.command == "draw" else TEXTS_AT_ONCE)
        unread = _switched(predictor, command, on=False)  # as in evaluation
        empty = {name for name in _switched(predictor, command, on=True) if getattr(args, name, None) is None}
        self.columns = unread, empty

    def __call__(self, ledger: "Ledger", finished: int = 0, ranks: Ranks | None = None) -> "Counts":
        from models.predictor.stream import Stream

        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
        threads = self.args.num_workers or min(8, max(1, len(os.sched_getaffinity(0)) // here))
        stream = Stream(
            self.predictor,
            lambda values: self.command.answer(self.predictor, values, self.args),
            self.command.columns,
            self.command.needed,
            {name: getattr(self.args, name, None) for name in self.command.columns},
            self.size,
            threads,
            sum(source.size for source in self.sources),
            finished,
            None if ranks is None else ranks.count,
            ranks is None or not ranks.rank,
        )
        return stream.run(self.sources, ledger, *self.columns)


def _report(args: argparse.Namespace, counts: "Sequence[Counts]", finished: int = 0) -> int:
    """Says how many there were; the exit code."""
    written, skipped = sum(c.written for c in counts), sum(c.skipped for c in counts)
    before = finished + sum(c.before for c in counts)
    print(f"{written} written, {skipped} skipped, {before} there before.", file=sys.stderr)
    if args.json:
        seconds = max(c.seconds for c in counts)
        summary = {
            "rows": written + skipped + before, "written": written, "skipped": skipped, "before": before,
            "seconds": round(seconds, 3), "rows_per_second": round((written + skipped) / max(seconds, 1e-9), 3),
            "waiting_share": round(sum(c.waited for c in counts) / max(sum(c.seconds for c in counts), 1e-9), 4),
        }  # fmt: skip
        print(json.dumps(summary))
    return int(skipped > 0)


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
