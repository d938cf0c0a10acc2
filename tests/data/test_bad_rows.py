"""Bad rows of every task: a named error, a counted skip, and the same from `python -m data.validate`."""

import base64
import io
import re

import pytest
from PIL import Image

from data.base import OFADataset
from data.sample import SkippedRow
from data.text import Vocabulary
from data.tsv import TsvFile
from data.validate import BPE_DIR, ROW_KINDS, main
from utils.errors import BadRowError


def picture(width=20, height=10):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (255, 0, 0)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


IMAGE = picture()
# task -> a good row in the order of the task's columns, and (column to change, bad value, words of the message)
GOOD = {
    "vqa_gen": ["1", IMAGE, "what is it?", "1.0|!+yes&&0.3|!+no", "cat&&dog"],
    "refcoco": ["1", IMAGE, "the left cat", "0,1.5,20,10"],
    "snli_ve": ["1", IMAGE, "a cat", "an animal", "neutral"],
    "image_classify": [IMAGE, "yes"],
    "gigaword": ["an article", "a summary"],
    "cola": ["a sentence", "1"],
    "mnli": ["a", "b", "2"],
    "mrpc": ["a", "b", "0"],
    "qnli": ["a?", "b", "not_entailment"],
    "qqp": ["a?", "b?", "1"],
    "rte": ["a", "b", "entailment"],
    "sst2": ["nice", "1"],
}
BAD = [
    ("vqa_gen", 3, "high|!+yes", "confidence"),
    ("vqa_gen", 3, "yes", "confidence"),
    ("vqa_gen", 3, "1.0|!+perhaps", "'perhaps' is not in the answer set"),
    ("vqa_gen", 1, "%%%", "base64"),
    ("refcoco", 3, "5,2,3,9", "no area"),
    ("refcoco", 3, "5,9,6,2", "no area"),
    ("refcoco", 3, "1,2,3", "is not x0,y0,x1,y1"),
    ("refcoco", 3, "a,b,c,d", "is not x0,y0,x1,y1"),
    ("refcoco", 3, "nan,1,2,3", "no area"),
    ("refcoco", 3, "0,0,30,5", "outside the image of 20 x 10"),
    ("refcoco", 3, "-3,0,10,5", "outside the image"),
    ("snli_ve", 4, "maybe", "label 'maybe'"),
    ("image_classify", 1, "perhaps", "'perhaps' is not in the answer set"),
    ("mnli", 2, "entailment", "label 'entailment'"),
    ("cola", 1, "", "label ''"),
    ("rte", 2, "1", "label '1'"),
]


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(BPE_DIR)


def dataset(path, rows, task, vocab, **options) -> OFADataset:
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    kind = ROW_KINDS[task]
    columns = ",".join(str(number) for number in range(len(rows[0])))
    answers = {"answers": ["yes", "no"]} if task in ("vqa_gen", "image_classify") else {}
    config = kind.config(patch_image_size=8, **options)
    return kind.dataset(TsvFile(str(path), columns), vocab, config, "train", **answers)


@pytest.mark.parametrize("task", GOOD)
def test_good_rows_are_good(task, tmp_path, vocab):
    assert isinstance(dataset(tmp_path / "rows.tsv", [GOOD[task]], task, vocab)[0], dict)


@pytest.mark.parametrize(("task", "column", "value", "words"), BAD)
def test_bad_row_is_named_or_skipped(task, column, value, words, tmp_path, vocab):
    bad = [*GOOD[task][:column], value, *GOOD[task][column + 1 :]]
    with pytest.raises(BadRowError, match="rows.tsv, line 2: .*" + words):
        dataset(tmp_path / "rows.tsv", [GOOD[task], bad], task, vocab)[1]
    rows = dataset(tmp_path / "more.tsv", [bad, GOOD[task]], task, vocab, skip_bad_rows=True)
    batch = rows.collater([rows[0], rows[1]])
    assert isinstance(rows[0], SkippedRow) and batch["nsentences"] == 1 and len(batch["skipped"]) == 1


def test_evaluation_tolerates_an_answer_outside_the_set_without_a_loss(tmp_path, vocab):
    rows = dataset(tmp_path / "rows.tsv", [[*GOOD["vqa_gen"][:3], "1.0|!+perhaps", ""]], "vqa_gen", vocab)
    rows.split = "valid"
    rows.allowed_after = lambda path: [2]
    sample = rows[0]
    assert isinstance(sample, dict)
    assert sample["target"].eq(vocab.pad).all() and sample["constraint_ids"].numel() == 0
    assert sample["extras"]["ref_dict"] == {"perhaps": 1.0}


@pytest.mark.parametrize("task", GOOD)
def test_validate_finds_what_a_run_would_stop_at(task, tmp_path, capsys):
    cases = [(column, value) for name, column, value, _ in BAD if name == task]
    rows = [[*GOOD[task][:column], value, *GOOD[task][column + 1 :]] for column, value in cases] * 9 + [GOOD[task]]
    path, answers = tmp_path / "rows.tsv", tmp_path / "answers.txt"
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    answers.write_text("yes\nno\n")
    columns = ",".join(str(number) for number in range(len(GOOD[task])))
    argv = [task, str(path), "--selected-cols", columns, "--workers", "0"]
    if task not in ("refcoco", "gigaword"):  # they have no closed set
        argv += ["--candidates", str(answers)]
    assert main(argv) == (1 if cases else 0)
    output = capsys.readouterr().out
    assert f"1 of {len(rows)} rows are good." in output
    assert output.count("rows.tsv, line") == min(20, len(rows) - 1)
    counts = re.findall(r"^(\d+) x ", output, flags=re.MULTILINE)
    assert sum(map(int, counts)) == len(rows) - 1


def test_validate_refuses_a_missing_file(capsys):
    assert main(["cola", "/nowhere/rows.tsv"]) == 2
    assert "/nowhere/rows.tsv" in capsys.readouterr().err
