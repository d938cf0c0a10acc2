"""Scores and images of all tasks on the demo data: python -m digits.page OUT_DIR [--allow-chance]."""

import argparse
import sys
import textwrap
from itertools import zip_longest
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from digits.results import IMAGES, RUNS, Case, Score, read_run
from utils.errors import UserError, one_sentence

WIDTH, ROW, HEADING, LINE = 17.0, 3.15, 0.5, 0.19  # inches
RIGHT, WRONG = "#1a7f37", "#c62828"


def markdown(scores: list[Score]) -> str:
    """The scores as a table."""
    lines = ["| task | metric | score | chance | rows |", "| --- | --- | --- | --- | --- |"]
    for task, metric, score, guess, rows in scores:
        value, level = "missing" if score is None else f"{score:.4f}", "" if guess is None else f"{guess:.4f}"
        lines.append(f"| {task} | {metric} | {value} | {level} | {rows or ''} |")
    return "\n".join(lines) + "\n"


def draw_image(axis: Axes, case: Case) -> None:
    """The image with what was asked above and the verdict below."""
    color = RIGHT if case.right else WRONG
    axis.imshow(np.asarray(case.image), interpolation="nearest")
    axis.set_title(textwrap.fill(case.asked, 26, max_lines=3), fontsize=11, parse_math=False)
    axis.set_xlabel(textwrap.fill(case.verdict, 26, max_lines=3), fontsize=11, color=color, parse_math=False)
    axis.set_frame_on(True)
    axis.spines[:].set(color=color, linewidth=2)
    if case.boxes:
        styles = ("#3dff6e" if case.right else "#ff5555", "-", 3), ("white", "--", 1.5)
        for (x0, y0, x1, y1), (edge, line, width) in zip(case.boxes, styles, strict=True):
            axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=edge, ls=line, lw=width))


def wrapped(case: Case) -> list[tuple[str, str]]:
    """Lines of a panel of text: the verdict on the left, what was asked on the right."""
    columns = textwrap.wrap(case.verdict, 36, max_lines=4), textwrap.wrap(case.asked, 150, max_lines=4)
    return list(zip_longest(*columns, fillvalue=""))


def draw_texts(axis: Axes, cases: list[Case]) -> None:
    """Cases below one another."""
    lines = [(RIGHT if case.right else WRONG, *line) for case in cases for line in wrapped(case)]
    for y, (color, verdict, asked) in enumerate(lines):
        axis.text(0, y, verdict, color=color, va="top", fontsize=11, parse_math=False)
        axis.text(0.21, y, asked, va="top", fontsize=11, parse_math=False)
    axis.set(ylim=(len(lines), 0))
    axis.axis("off")


def draw_page(panels: list[tuple[Score, list[Case]]], path: Path) -> None:
    """A panel for each main score and its cases: a row of images, or lines of text."""
    lines = [sum(len(wrapped(case)) for case in cases) for _, cases in panels]
    heights = [ROW if cases[0].image else HEADING + LINE * n for n, (_, cases) in zip(lines, panels, strict=True)]
    figure = plt.figure(figsize=(WIDTH, HEADING + sum(heights)), layout="constrained")
    figure.suptitle("Green: right. Red: wrong (truth). Number: probability. Dashed: true box.", x=0.004, ha="left")
    places = figure.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for place, (score, cases) in zip(places, panels, strict=True):
        heading = f"{score.task}: {score.metric} {score.score:.3f} on {score.rows} rows (chance {score.chance:.3f})"
        place.suptitle(heading, x=0.004, ha="left", fontsize=13, weight="bold")
        if cases[0].image:
            blank = {"frame_on": False, "xticks": [], "yticks": [], "anchor": "N"}
            for axis, case in zip(place.subplots(1, IMAGES, subplot_kw=blank), cases, strict=False):
                draw_image(axis, case)
        else:
            draw_texts(place.subplots(), cases)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Writes and prints the table and draws the page; 1 if guessing scores as well, 2 on missing or broken files."""
    parser = argparse.ArgumentParser("python -m digits.page", description="Table of scores and page of images.")
    parser.add_argument(
        "out", metavar="OUT_DIR", type=Path, help="folder with data/ and results/; scores.md and page.png go there"
    )
    parser.add_argument("--allow-chance", action="store_true", help="exit with 0 even if a score is not above chance")
    args = parser.parse_args(argv)
    try:
        runs = [read_run(run, args.out) for run in RUNS]
        scores = [line for lines, _ in runs for line in lines]
        # one row of images for the splits of a task
        panels = {lines[0].task.split()[0]: (lines[0], cases) for lines, cases in reversed(runs) if cases}
        if not panels:
            raise UserError(f"There are no predictions below {args.out / 'results'}: evaluate first.")
        (args.out / "scores.md").write_text(markdown(scores), encoding="utf-8")
        print(markdown(scores), end="")
        draw_page(list(panels.values())[::-1], args.out / "page.png")
    except (OSError, ValueError) as error:
        print(f"python -m digits.page: error: {one_sentence(error)}", file=sys.stderr)
        return 2
    print(args.out / "page.png")
    low = [s for s in scores if s.score is not None and s.chance is not None and not s.score > s.chance]  # or NaN
    if low and not args.allow_chance:
        print("Not above chance:", ", ".join(f"{s.task} ({s.metric} {s.score:.4f})" for s in low), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
