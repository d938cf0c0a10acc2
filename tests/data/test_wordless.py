"""Rows whose texts, ids, numbers or lengths teach nothing: bad in training and for `data.validate`, in every task."""

import shutil
from pathlib import Path

import pytest

from data.sample import SkippedRow
from data.text import Vocabulary, has_words
from data.tsv import TsvFile
from data.validate import BPE_DIR, ROW_KINDS, main
from tests.data.test_bad_rows import GOOD as OTHERS
from tests.data.test_bad_rows import IMAGE
from utils.errors import BadRowError

CASES = Path(__file__).parents[1] / "cases"
CODES = " ".join(["5"] * 1024)
GOOD = {
    **OTHERS,
    "caption": ["1", IMAGE, "a cat"],
    "image_gen": ["1", "a cat", CODES],
    "pretrain_text": ["1", "a cat sleeps"],
    "pretrain": ["1", IMAGE, "a cat", "", "", "", "coco", "caption"],
}
# task -> columns of texts that a model learns from
TEXTS = {
    "caption": [2], "vqa_gen": [2], "refcoco": [2], "snli_ve": [2], "gigaword": [0, 1], "image_gen": [1],
    "cola": [0], "mnli": [0, 1], "mrpc": [0, 1], "qnli": [0, 1], "qqp": [0, 1], "rte": [0, 1], "sst2": [0],
    "pretrain_text": [1], "pretrain": [2],
}  # fmt: skip
WITH_ID = ["caption", "vqa_gen", "refcoco", "snli_ve", "image_gen", "pretrain_text", "pretrain"]
WORDLESS = ["", "   ", "...!", "?", "&&", "&& &&", "\u2026 \u3002", "\u200b", "\u00a0"]


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(BPE_DIR)


def dataset(path, row, task, vocab, split="check", more=(), **options):
    path.write_text("".join("\t".join(one) + "\n" for one in (row, *more)), encoding="utf-8")
    kind = ROW_KINDS[task]
    columns = ",".join(str(number) for number in range(len(row)))
    config = kind.config(**{"patch_image_size": 8, **options})
    return kind.dataset(TsvFile(str(path), columns), vocab, config, split)


def changed(task, column, value):
    return [*GOOD[task][:column], value, *GOOD[task][column + 1 :]]


@pytest.mark.parametrize("task", TEXTS)
def test_a_text_without_a_word_is_a_bad_row_where_a_model_learns(task, tmp_path, vocab):
    splits = ["check"] if task == "pretrain" else ["check", "train"]
    for split in splits:
        bad = [changed(task, column, value) for value in WORDLESS for column in TEXTS[task]]
        rows = dataset(tmp_path / f"{split}.tsv", GOOD[task], task, vocab, split, bad)
        assert isinstance(rows[0], dict) and len(rows) == 1 + len(bad)
        for number in range(1, len(rows)):
            with pytest.raises(BadRowError, match=f"line {number + 1}: the .* has no words"):
                rows[number]


@pytest.mark.parametrize("task", WITH_ID)
def test_an_empty_id_is_a_bad_row(task, tmp_path, vocab):
    bad = [changed(task, 0, value) for value in ("", " ", "\u00a0")]
    rows = dataset(tmp_path / "rows.tsv", GOOD[task], task, vocab, "check", bad)
    for number in (1, 2, 3):
        with pytest.raises(BadRowError, match=f"line {number + 1}: the id is empty"):
            rows[number]


@pytest.mark.parametrize(("task", "column"), [("caption", 2), ("gigaword", 1), ("vqa_gen", 2), ("cola", 0)])
def test_evaluation_reads_rows_without_words(task, column, tmp_path, vocab):
    assert isinstance(dataset(tmp_path / "rows.tsv", changed(task, column, "..."), task, vocab, "valid")[0], dict)


@pytest.mark.parametrize("text", ["a", "7", "\u732b", "\u2603", "?!x", "\u0645"])
def test_any_letter_number_or_symbol_is_a_word(text):
    assert has_words(text)


def test_hashes_stand_for_digits_in_summaries(tmp_path, vocab):
    assert isinstance(dataset(tmp_path / "rows.tsv", ["a # b", "- ##"], "gigaword", vocab)[0], dict)


@pytest.mark.parametrize("answers", ["1.0|!+", "1.0|!+ ", "0.3|!+yes&&1|!+"])
def test_an_empty_answer_is_a_bad_row(answers, tmp_path, vocab):
    with pytest.raises(BadRowError, match="the answer is empty"):
        dataset(tmp_path / "rows.tsv", changed("vqa_gen", 3, answers), "vqa_gen", vocab)[0]
    with pytest.raises(BadRowError, match="the class is empty"):
        dataset(tmp_path / "class.tsv", [IMAGE, " "], "image_classify", vocab)[0]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "0", "0.0", "-0.0", "1.01", "1e400", "1e-400", "1000"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_confidence_is_above_0_and_at_most_1(number, split, tmp_path, vocab):
    with pytest.raises(BadRowError, match="line 1: the confidence .* is not above 0 and at most 1"):
        dataset(tmp_path / "rows.tsv", changed("vqa_gen", 3, f"{number}|!+yes"), "vqa_gen", vocab, split)[0]
    row = ["1", IMAGE, "", "is it?", f"1|!+no&&{number}|!+yes", "", "vqa", "qa"]
    with pytest.raises(BadRowError, match="the confidence"):
        dataset(tmp_path / "pretrain.tsv", row, "pretrain", vocab)[0]


@pytest.mark.parametrize(
    ("task", "column", "value"),
    [
        ("vqa_gen", 3, "0_1|!+yes"),
        ("vqa_gen", 3, "\uff11|!+yes"),
        ("refcoco", 3, "1_0,1,20,10"),
        ("refcoco", 3, "0,1,\u0661,10"),
    ]
    + [("image_gen", 2, CODES[:-1] + "5_5"), ("image_gen", 2, CODES[:-1] + "\u0665")],
)
def test_numbers_are_written_in_plain_digits(task, column, value, tmp_path, vocab):
    with pytest.raises(BadRowError, match="line 1: the (answer column|box|codes) "):
        dataset(tmp_path / "rows.tsv", changed(task, column, value), task, vocab)[0]


LONG = "x1" * 3000  # one word of thousands of tokens, which no limit in words cuts


@pytest.mark.parametrize(
    ("task", "column", "value", "side"),
    [
        ("caption", 2, LONG, "target"),
        ("vqa_gen", 2, LONG, "source"),
        ("refcoco", 2, LONG, "source"),
        ("snli_ve", 2, LONG, "source"),
        ("gigaword", 1, LONG, "target"),
        ("image_gen", 1, LONG, "source"),
        ("mnli", 1, LONG, "source"),
        ("image_classify", 1, LONG, "target"),
        ("pretrain", 2, LONG, "target"),
    ],
)
def test_a_text_longer_than_the_positions_is_a_bad_row(task, column, value, side, tmp_path, vocab):
    for split in ("check", "valid"):
        with pytest.raises(BadRowError, match=rf"line 1: the {side} has [\d,]+ tokens .* for 1024"):
            dataset(tmp_path / f"{split}.tsv", changed(task, column, value), task, vocab, split)[0]
    rows = dataset(tmp_path / "skip.tsv", changed(task, column, value), task, vocab, skip_bad_rows=True)
    assert isinstance(rows[0], SkippedRow)


def test_fewer_positions_are_kept_and_codes_have_their_own(tmp_path, vocab):
    row = changed("vqa_gen", 2, "is it a cat?")
    with pytest.raises(BadRowError, match="the source has 7 tokens and the model positions for 6"):
        dataset(tmp_path / "rows.tsv", row, "vqa_gen", vocab, max_source_positions=6)[0]
    assert isinstance(dataset(tmp_path / "codes.tsv", GOOD["image_gen"], "image_gen", vocab)[0], dict)


def test_a_long_second_example_of_a_pretraining_row(tmp_path, vocab):
    row = ["1", IMAGE, LONG, "", "0,1,20,10", "", "refcoco", "visual_grounding"]
    with pytest.raises(BadRowError, match="tokens and the model positions for 1024"):
        dataset(tmp_path / "rows.tsv", row, "pretrain", vocab)[0]


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        ("cap_empty_caption.tsv", "caption", "4 x the caption has no words"),
        ("vqa_nan_conf.tsv", "vqa_gen", "4 x the confidence ... is not above ... and at most ..."),
    ],
)
def test_validate_names_the_cases(name, task, words, tmp_path, capsys):
    path = shutil.copy(CASES / name, tmp_path)
    assert main([task, path, "--workers=0"]) == 1
    output = capsys.readouterr().out
    assert words in output and "0 of 4 rows are good." in output and f"{name}, line 4: " in output


def test_messages_cut_long_values(tmp_path, vocab):
    million = "9" * 1_000_000
    for task, column, value in [
        ("cola", 1, million), ("vqa_gen", 3, million), ("vqa_gen", 3, f"{million}|!+x"), ("refcoco", 3, million),
        ("refcoco", 3, f"5,5,3,{million}"), ("snli_ve", 4, million), ("image_gen", 2, f"x{million}"),
        ("pretrain", 7, million),
    ]:  # fmt: skip
        with pytest.raises(BadRowError) as caught:
            dataset(tmp_path / "rows.tsv", changed(task, column, value), task, vocab)[0]
        assert len(str(caught.value)) < 500 and str(caught.value).endswith("--skip-bad-rows."), task
