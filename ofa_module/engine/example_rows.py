"""A batch as a task makes it, of rows that are as long as its options let them be; no data file is read."""

import base64
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from data.base import OFADataset
from data.collate import without_skipped
from data.image_gen import code_count
from data.tasks import TASKS
from data.tsv import TsvFile
from data.vqa_gen import join_answers
from utils.constants import SEPARATOR
from utils.errors import BadRowError, UserError

WORD = "a"  # a token of its own in most vocabularies
SIDE = 32  # of the image, which is then scaled to --patch-image-size
LABELS = ("entailment", "0")  # every task with a label knows one of them


def example_batch(task: Any, rows: int) -> Any:
    """A collated batch of a task.

    Texts have as many words of one token as --max-src-length and --max-tgt-length allow, fewer where the model has no
    positions for them, and an answer is the longest of the answer set. Of tasks whose rows this does not know, such as
    pretraining, it is the first batch of the data file.
    """
    problem = BadRowError("", reason="--max-src-length and --max-tgt-length are 0")
    length = max(task.cfg.max_src_length, task.cfg.max_tgt_length)
    while length and hasattr(task, "row"):
        for label in LABELS:
            try:
                dataset = _dataset(task, length, label)
                return dataset.collater([dataset[0]] * rows)
            except BadRowError as error:
                problem = error
        length //= 2
    if task.cfg._name in TASKS:
        raise UserError(f"No row fits the options of --task={task.cfg._name}: {problem.reason}.")
    task.load_dataset("train")
    batches = task.get_batch_iterator(task.dataset("train"), max_sentences=rows)
    batch, messages = without_skipped(batches.first_batch)
    if not batch:
        raise UserError(f"No row of the batch can be read: {messages[0]}.")
    return batch


def _dataset(task: Any, length: int, label: str) -> OFADataset:
    """The task's training set over a file of one row, which is gone; BadRowError later if the row is none of its."""
    text = " ".join([WORD] * length)
    answer = max(task.answers, key=lambda name: len(task.vocab.encode(f" {name}")), default=text)
    codes = code_count(task.cfg.code_image_size) if "code_image_size" in task.cfg else 0
    columns = {
        "id": "0",
        "image": _image(),
        "box": f"0,0,{SIDE},{SIDE}",
        "answers": join_answers({answer: 1.0}),
        "name": answer,
        "objects": SEPARATOR.join([WORD] * length),
        "codes": " ".join(["0"] * codes),
        "label": label,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "example.tsv"
        file.write_text("\t".join(columns.get(name, text) for name in task.row.columns) + "\n", encoding="utf-8")
        dataset: OFADataset = task.build_dataset(TsvFile(file), "train", 1)
        return dataset


def _image() -> str:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
