"""The page of `data.validate --html`: the report, and the first rows as the model sees them, in one file."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.base import OFADataset
from data.images import normalisation
from data.sample import Sample, SkippedRow, answer_ids
from data.text import Vocabulary
from data.validate_report import Report
from utils.errors import UserError, one_sentence
from utils.files import atomic_write

ROWS = 24  # that are shown
LONGEST = 2000  # characters of a text that are shown
COLORS = ("#00c853", "#ff3d57", "#ffb300", "#2979ff", "#d500f9", "#00b8d4")
_CODES = re.compile(r"(?:<code_\d+>){3,}")
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 24px; color: #1c1e21; background: #f4f5f7 }}
h1 {{ font-size: 22px; overflow-wrap: anywhere }} h2 {{ font-size: 18px; margin-top: 28px }}
li, dd {{ overflow-wrap: anywhere; unicode-bidi: isolate }}
.rows {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px; align-items: start }}
.row {{ background: #fff; border: 1px solid #d8dbe0; border-radius: 8px; padding: 12px; min-width: 0 }}
.row.bad {{ border: 2px solid #c62828 }} .wrong {{ color: #c62828 }}
.row h3 {{ font-size: 14px; margin: 0 0 8px; overflow-wrap: anywhere }}
svg {{ width: 100%; display: block; background: #ddd }} rect {{ fill: none }}
dl {{ margin: 8px 0 0 }} dt {{ color: #646a73; font-size: 13px }}
dd {{ margin: 0 0 6px; white-space: pre-wrap; max-height: 220px; overflow: auto }}
</style></head><body><h1>{title}</h1>
<ul>{lines}</ul>{bad}<h2>The first {count} rows as the model sees them</h2><div class="rows">
{rows}
</div></body></html>
"""


def write_page(report: Report, dataset: OFADataset, path: Path) -> None:
    """Writes the report and the first rows of its file; UserError if the file cannot be written.

    Args:
        dataset: the rows, with their images resized.
    """
    count = min(ROWS, len(dataset))
    messages = "".join(f"<li>{_text(message)}</li>" for message in report.messages)
    page = _PAGE.format(
        title=_text(f"Report on {dataset.rows.path}"),
        lines="".join(f"<li>{_text(line)}</li>" for line in report.lines()),
        bad=f'<h2>The first bad rows</h2><ul class="wrong">{messages}</ul>' if messages else "",
        count=count,
        rows="\n".join(_row(dataset, row) for row in range(count)),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(page.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"The page cannot be written: {one_sentence(error)}") from error


def _row(dataset: OFADataset, row: int) -> str:
    sample, place = dataset[row], dataset.rows.place(row)
    if isinstance(sample, SkippedRow):
        reason = sample.message.removeprefix(f"{dataset.rows.path}, {place}: ")
        return f'<div class="row bad"><h3>{_text(place)}</h3><div class="wrong">{_text(reason)}</div></div>'
    parts = [f"<h3>{_text(place)}, id {_text(sample['id'])}</h3>"]
    for one in (sample, sample.get("second")):
        if one is not None:
            parts.append(_picture(dataset, one) if one is sample else "")
            parts.append(_texts(dataset.vocab, one))
    return f'<div class="row">{"".join(parts)}</div>'


def _texts(vocab: Vocabulary, sample: Sample | Any) -> str:
    target = answer_ids(sample)
    learned = bool(target.ne(vocab.pad).any())
    sides = {"source": _written(vocab, sample["source"]), "target": _written(vocab, target) if learned else ""}
    if answers := sample["extras"].get("ref_dict"):
        sides["answers"] = ", ".join(f"{answer} ({confidence:g})" for answer, confidence in answers.items())
    if not learned:
        sides["target"] = "(nothing is learned)"
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{_text(text)}</dd>" for name, text in sides.items()) + "</dl>"


def _picture(dataset: OFADataset, sample: Sample) -> str:
    """The resized image with its boxes; nothing where the model sees none."""
    if "patch_image" not in sample or not bool(sample["patch_mask"]):
        return ""
    pixels = sample["patch_image"]
    side = pixels.shape[-1]
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in normalisation(dataset.config.imagenet_default_mean_and_std)
    )
    grid = (pixels * std + mean).mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(grid)).save(file, "JPEG", quality=90)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    shapes = []
    for number, (x0, y0, x1, y1) in enumerate(_boxes(dataset, sample)):
        place = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
        shapes.append(f'<rect {place} stroke="{COLORS[number % len(COLORS)]}" stroke-width="{side / 120:.1f}"/>')
    image = f'<image href="data:image/jpeg;base64,{data}" width="{side}" height="{side}"/>'
    return f'<svg viewBox="0 0 {side} {side}">{image}{"".join(shapes)}</svg>'


def _boxes(dataset: OFADataset, sample: Sample) -> Iterable[Sequence[float]]:
    """Boxes in pixels of the resized image, of every four location tokens in a row."""
    vocab, scale = dataset.vocab, getattr(dataset.config, "max_image_size", 0)
    for side in ("source", "target"):
        bins: list[float] = []
        for token in sample[side].tolist():
            number = token - vocab.bin_start
            bins = [*bins, number / (vocab.num_bins - 1) * scale] if 0 <= number < vocab.num_bins else []
            if len(bins) == 4:
                yield bins
                bins = []


def _written(vocab: Vocabulary, ids: Tensor) -> str:
    """Text of ids, with the number of image codes in place of many."""
    text = vocab.decode(ids, drop_pad=True)
    return _CODES.sub(lambda codes: f"<{codes[0].count('<')} image codes>", text)


def _text(text: str) -> str:
    """Text in a page: nothing in it is markup, and of a long one the beginning."""
    return html.escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters)")
