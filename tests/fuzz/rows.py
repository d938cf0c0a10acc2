"""Mutated rows of all tasks: each is a sample, or a bad row that is named with file, line and reason.

python -m tests.fuzz.rows [--count 20000 --seed 0]
"""

import argparse
import random
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from data.answers import AnswerConfig, read_answers
from data.base import OFADataset
from data.pretrain_rows import PretrainData
from data.text import Vocabulary
from data.tsv import TsvFile
from data.validate import BPE_DIR, ROW_KINDS
from utils.errors import BadRowError

TSV = Path(__file__).parents[1] / "golden" / "tsv"
FILES = {
    "caption": "caption/caption_train.tsv", "vqa_gen": "vqa_gen/vqa_train.tsv", "snli_ve": "snli_ve/snli_ve_train.tsv",
    "refcoco": "refcoco/refcoco_train.tsv", "image_classify": "image_classify/imagenet_1k_train.tsv",
    "image_gen": "image_gen/coco_vqgan_train.tsv", "gigaword": "gigaword/train.tsv",
    **{task: f"{task}/{task}_train.tsv" for task in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")},
    "pretrain": "pretrain/vision_language_examples.tsv", "pretrain_text": "pretrain/text_examples.tsv",
    "pretrain_image": "pretrain/image_examples.tsv", "pretrain_detection": "pretrain/detection_examples.tsv",
    "pretrain_image_gen": "image_gen/coco_vqgan_train.tsv",
}  # fmt: skip
ANSWERS = {"vqa_gen": "vqa_gen/trainval_ans2label.pkl", "image_classify": "image_classify/class2label.pkl"}
ODD = (
    "", " ", "0", "-1", "nan", "inf", "-inf", "1e999", "1e-999", "None", "null", "&&", "|!+", "1.0|!+", "|!+yes", ",",
    "0,0,0,0", "1,2,3", "nan,0,1,1", "5,5,1,1", "<unk>", "</s>", "<bin_5>", "<code_0>", "\x00", "\ufeff", "\u2028",
    "\u0085", "ü漢🙂", "a" * 3000, "word " * 3000, "1" * 5000, "%%%", "AAAA", "b'AAAA'", "R0lGODlhAQABAIAAAAAAAP///yH5",
    "/9j/4AAQSkZJRgABAQ==", "data:image/png;base64,AAAA", "../x.png", "{}", "[", "'", '"', "\\",
)  # fmt: skip


def mutate(row: list[str], rng: random.Random) -> list[str]:
    """A row with one to three changes: a column replaced, cut, doubled, exchanged, left out or with odd characters."""
    row = list(row)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        column = rng.randrange(len(row))
        text = row[column]
        at = rng.randrange(len(text) + 1)
        match rng.randrange(9):
            case 0 | 1:
                row[column] = rng.choice(ODD)
            case 2:
                row[column] = text[:at]
            case 3:
                row[column] = text[:at] + rng.choice(ODD) + text[at:]
            case 4:
                other = rng.randrange(len(row))
                row[column], row[other] = row[other], text
            case 5:
                row[column] = text + text if len(text) < 100_000 else text[at:]
            case 6 if len(row) > 1:
                del row[column]
            case 7:
                row.insert(column, rng.choice(ODD))
            case _:
                row[column] = text[:at] + chr(rng.choice([0, 13, 34, 44, 45, 124, 0x300, 0x10FFFF])) + text[at + 1 :]
    return row


def dataset(task: str, path: Path, vocab: Vocabulary) -> OFADataset:
    """The rows of a file as in training; those of `pretrain` with wrong texts to match."""
    kind = ROW_KINDS[task]
    config = kind.config(patch_image_size=32)
    given: dict[str, Any] = {}
    if isinstance(config, AnswerConfig) and task in ANSWERS:
        config.ans2label_file = str(TSV / ANSWERS[task])
        given["answers"] = read_answers(config)
    if isinstance(config, PretrainData):
        config.neg_sample_dir = str(TSV / "pretrain" / "negative_sample")
    return kind.dataset(TsvFile(str(path), kind.selected_cols), vocab, config, "train", **given)


def run(task: str, count: int, seed: int, folder: Path, vocab: Vocabulary) -> tuple[Counter[str], list[str]]:
    """Outcomes of `count` mutated rows of a task, and what went wrong."""
    rng = random.Random(f"{task} {seed}")
    lines = (TSV / FILES[task]).read_text(encoding="utf-8").split("\n")
    good = [line.split("\t") for line in lines if line]
    path = folder / f"{task}_{seed}.tsv"
    rows = ["\t".join(mutate(rng.choice(good), rng)).replace("\n", " ") for _ in range(count)]
    path.write_text("".join(f"{row}\n" for row in [*rows, lines[0]]), encoding="utf-8", newline="")
    found: Counter[str] = Counter()
    wrong: list[str] = []
    data = dataset(task, path, vocab)
    for number in range(count):
        try:
            data[number]
            found["good"] += 1
        except BadRowError as error:
            found["named"] += 1
            if error.place != f"line {number + 1}" or "\n" in str(error) or len(str(error)) > 1000:
                wrong.append(f"{task}, row {number + 1}: {str(error)!r:.300}")
        except Exception as error:
            text = re.sub(r"\s+", " ", str(error))
            wrong.append(f"{task}, row {number + 1}, {rows[number][-80:]!r}: {type(error).__name__}: {text:.200}")
    return found, wrong


def main() -> int:
    """Long run over all tasks; prints what went wrong and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000, help="rows over all tasks")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    vocab, total, faults = Vocabulary.load(BPE_DIR), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        for task in FILES:
            found, wrong = run(task, -(-args.count // len(FILES)), args.seed, Path(folder), vocab)
            total, faults = total + found, faults + len(wrong)
            print(*wrong, f"{task}: {dict(found)}, {len(wrong)} faults", sep="\n", flush=True)
    print(f"{total.total() + faults} rows: {dict(total)}, {faults} faults")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
