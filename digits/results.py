"""What evaluation wrote about the demo data: scores beside chance, and the first answers beside their rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from data.boxes import box_hits, box_iou, parse_box
from data.glue import GLUE
from data.images import decode_base64, decode_image
from data.snli_ve import WORDS
from data.tasks import TASKS as ROW_KINDS
from data.tsv import TsvFile
from data.vqa_gen import parse_answers
from digits.image_gen import FRAME, POSITIONS
from digits.legibility import read_spec
from digits.tasks import TASKS, chance
from digits.words import COLOURS
from utils.errors import UserError
from utils.files import read_text
from utils.predictions import Record, check_predictions

IMAGES, TEXTS = 8, 3  # cases of a run with and without images
DRAWN = "image_gen"  # the task whose answers are images
GUESSES = {"mcc": 0.0, "colour": 1 / len(COLOURS)}  # of further metrics
EXACT = "exact captions"  # counted here; scores files hold the other metrics


class Run(NamedTuple):
    """Where the answers of one evaluation are, and which rows they answer.

    Attributes:
        task: name of the demo task. file: its TSV.
        results: path below results/, without the endings `_predict.json` and `_scores.json`.
        metrics: the main one first; what names in the scores file begin with (without Java, CIDEr's is longer).
        answer: field of a record. truth, asked: names of the columns of the right answer and of the texts read.
    """

    task: str
    file: str
    results: str
    metrics: tuple[str, ...]
    answer: str
    truth: str
    asked: tuple[str, ...] = ()

    @property
    def columns(self) -> Mapping[str, int]:
        """Numbers of the file's columns by name."""
        return POSITIONS if self.task == DRAWN else ROW_KINDS[self.task].columns

    def true_answer(self, row: tuple[str, ...]) -> str:
        """The right answer of a row in a record's words; KeyError or ValueError if the column holds none."""
        column = row[self.columns[self.truth]]
        if self.task == "vqa_gen":
            return next(iter(parse_answers(column)))
        words = WORDS if self.task == "snli_ve" else GLUE[self.task].words if self.task in GLUE else {column: column}
        return words[column]


RUNS = (
    Run("caption", "caption_test.tsv", "caption/test", (EXACT, "CIDEr"), "caption", "caption"),
    Run("vqa_gen", "vqa_test.tsv", "vqa_test_allcand/test", ("vqa_score",), "answer", "answers", ("question",)),
    *(
        Run("refcoco", f"{name}.tsv", f"refcoco/{name}", ("score",), "box", "box", ("text",))
        for name in ("refcoco_val", "refcoco_testA", "refcoco_testB")
    ),
    Run("snli_ve", "snli_ve_test.tsv", "snli_ve/test", ("snli_score",), "answer", "label", ("hypothesis",)),
    Run("image_classify", "imagenet_1k_val.tsv", "imagenet_1k_val/val", ("score",), "answer", "name"),
    Run(DRAWN, "pictures_full_test.tsv", "image_gen/test", ("digit", "colour"), "image", "text", ("text",)),
    Run("gigaword", "gigaword_test.tsv", "gigaword/test", ("rougeL_f1",), "hyp", "summary", ("article",)),
    *(
        Run(
            name,
            f"{name}_dev.tsv",
            f"glue/{name}/dev",
            task.metrics,
            "hyp",
            "label",
            tuple(ROW_KINDS[name].columns)[:-1],
        )
        for name, task in GLUE.items()
    ),
)


class Score(NamedTuple):
    """A line of the table: no score = there are no results; no chance = unknown."""

    task: str
    metric: str
    score: float | None
    chance: float | None
    rows: int


class Case(NamedTuple):
    """One row of a data file and what the model made of it; boxes (said, true) are x0, y0, x1, y1 in pixels."""

    asked: str
    verdict: str
    right: bool
    image: Image.Image | None = None
    boxes: tuple[list[float], list[float]] | None = None


def read_run(run: Run, out: Path) -> tuple[list[Score], list[Case]]:
    """Scores, the main one first, and the first cases; UserError if files are broken or do not fit together."""
    predictions, scores = (out / "results" / f"{run.results}_{kind}.json" for kind in ("predict", "scores"))
    if not predictions.exists():
        return score_lines(run, None, 0), []
    rows = TsvFile(out / "data" / TASKS[run.task].folder / run.file)
    try:
        truths = [run.true_answer(rows[number]) for number in range(len(rows))]
    except (LookupError, ValueError) as error:
        raise UserError(
            f"{rows.path} is not a file of the task {run.task} ({error}): generate the data again."
        ) from error
    check_predictions(predictions, {run.answer: list if run.answer == "box" else str}, len(rows), None)
    records = json.loads(read_text(predictions))
    try:
        values = {name: float(value) for name, value in json.loads(read_text(scores)).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{scores} cannot be read as scores ({error}): evaluate again.") from error
    if EXACT in run.metrics:
        values[EXACT] = sum(said[run.answer] == true for said, true in zip(records, truths, strict=True)) / len(rows)
    shown = range(min(len(rows), IMAGES if "image" in run.columns else TEXTS))
    if run.task == DRAWN:
        cases = [read_drawing(predictions.parent / records[n]["image"], truths[n]) for n in shown]
    else:
        cases = [read_case(run, rows[n], records[n], truths[n]) for n in shown]
    return score_lines(run, values, len(rows)), cases


def score_lines(run: Run, scores: dict[str, float] | None, rows: int) -> list[Score]:
    """Lines of the table for a run, one without a score if there are none; UserError if one is lacking."""
    task, label = (run.file[:-4].replace("_", " "), "Acc@0.5") if run.task == "refcoco" else (run.task, None)
    if scores is None:
        return [Score(task, label or run.metrics[0], None, chance(run.task), rows)]
    lines = []
    for metric in run.metrics:
        name = next((name for name in scores if name.startswith(metric)), None)
        if name is None:
            raise UserError(f"The scores of {run.results} lack {metric!r}: evaluate again.")
        guess = chance(run.task) if metric == run.metrics[0] else GUESSES.get(metric)
        lines.append(Score(task, label or name, scores[name], guess, rows))
    return lines


def read_drawing(path: Path, prompt: str) -> Case:
    """A drawn image, and what can be read in it."""
    image = decode_image(path.read_bytes())
    spec = read_spec(image, FRAME)
    seen = f"a {spec.name}" if spec else "nothing"
    return Case(prompt, f"reads {seen}", seen == prompt, image)


def read_case(run: Run, row: tuple[str, ...], record: Record, truth: str) -> Case:
    """A row as the page shows it; ValueError for an image or box that is none."""
    asked, said = "  |  ".join(row[run.columns[name]] for name in run.asked), record[run.answer]
    image = decode_image(decode_base64(row[run.columns["image"]])) if "image" in run.columns else None
    if image and run.answer == "box":
        if len(said) != 4 or not all(isinstance(edge, int | float) for edge in said):
            raise UserError(f"The box {said} among the {run.results} predictions is not four numbers: evaluate again.")
        boxes = said, parse_box(truth, *image.size)
        first, second = (torch.tensor([box], dtype=torch.float) for box in boxes)
        return Case(asked, f"IoU {box_iou(first, second).item():.2f}", bool(box_hits(first, second)), image, boxes)
    sure = f" {record['probability']:.2f}" if "probability" in record else ""
    return Case(asked, f"{said}{sure}" if said == truth else f"{said}{sure} ({truth})", said == truth, image)
