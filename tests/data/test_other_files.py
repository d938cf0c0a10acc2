"""Inputs that are no TSV file of the task, and what `data.validate` says about flags."""

import json
import re
from pathlib import Path

import pytest

from data.items import open_items
from data.validate import main
from tests.data.test_bad_rows import BAD, GOOD
from utils.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "tsv"
NOT_TSV = [
    ("rows.json", b'[{"id": 1, "text": "a"}]', "JSON"),
    ("rows.tsv", b'{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n', "JSON"),
    ("rows.txt", b"id,image,caption\n1,x.png,a cat\n", "CSV with ','"),
    ("rows.tsv", b"\xef\xbb\xbfid;image;caption\n1;x;y\n", "CSV with ';'"),
    ("rows.tsv", "1\ta\tb\n".encode("utf-16"), "UTF-16"),
]


@pytest.mark.parametrize(("name", "content", "found"), NOT_TSV)
def test_a_file_of_another_format_is_no_bad_row(name, content, found, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    for task in ("caption", "mnli"):
        assert main([task, str(tmp_path / name), "--workers=0"]) == 2
        error = capsys.readouterr().err
        assert f"{name} seems to be {found}" in error and "tab" in error and error.count("\n") == 1


def test_a_row_without_tabs_among_others_is_a_bad_row(tmp_path, capsys):
    (tmp_path / "rows.tsv").write_text("a, b\nnice\t1\n")
    assert main(["sst2", str(tmp_path / "rows.tsv"), "--workers=0"]) == 1
    assert "line 1: the row has 1 columns" in capsys.readouterr().out


@pytest.mark.parametrize("task", GOOD)
def test_validate_advises_no_flag_that_it_does_not_have(task, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    rows = [[*GOOD[name][:column], value, *GOOD[name][column + 1 :]] for name, column, value, _ in BAD if name == task]
    rows += [["x"] * len(GOOD[task]), [""] * len(GOOD[task]), ["x"], ["y" * 9000] * len(GOOD[task])]
    (tmp_path / "rows.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "answers.txt").write_text("yes\nno\nyes\n")
    columns = ",".join(str(number) for number in range(len(GOOD[task])))
    argv = [task, str(tmp_path / "rows.tsv"), f"--selected-cols={columns}", "--workers=0"]
    main(argv)
    main([*argv, f"--candidates={tmp_path}/answers.txt"])
    main([*argv, "--candidates=/nowhere/answers.txt"])
    main([task, str(tmp_path / "rows.tsv"), "--selected-cols=0", "--workers=0"])
    said = "".join(capsys.readouterr())
    assert ", line " in said and not set(re.findall(r"--[a-z0-9-]+", said)) - known


def test_validate_takes_the_size_of_images_that_codes_describe(tmp_path, capsys):
    (tmp_path / "codes.tsv").write_text(f"1\t{' '.join(['5'] * 256)}\ta cat\n")
    assert main(["image_gen", str(tmp_path / "codes.tsv"), "--workers=0"]) == 1
    assert "--code-image-size" in capsys.readouterr().out
    assert main(["image_gen", str(tmp_path / "codes.tsv"), "--workers=0", "--code-image-size=128"]) == 0


@pytest.mark.parametrize("name", ["articles.csv", "my articles.CSV", "a.json", "b.pdf", "c.docx", "folder/", "d.html"])
def test_a_file_that_is_not_there_is_no_text(name):
    with pytest.raises(UserError, match="looks like a file|There is no data file"):
        open_items(name, ("text",), "0")


def test_an_existing_file_of_another_kind_is_no_text(tmp_path):
    (tmp_path / "notes.log").write_text("a")
    with pytest.raises(UserError, match="looks like a file"):
        open_items(str(tmp_path / "notes.log"), ("text",), "0")
    with pytest.raises(UserError, match="cannot be read"):
        open_items(str(tmp_path / "gone.txt"), ("text",), "0")


@pytest.mark.parametrize(
    "text", ["a cat.", "rain in the u.s.", "yes", "3.5", "a cat and/or a dog", "x" * 9000, "a.b c"]
)
def test_a_text_is_a_text(text):
    (item,) = open_items(text, ("text",), "0").read(())
    assert item.values == {"text": text}


RELEASED = {
    "answer": (("id", "image", "question", "objects"), "0,5,2,4", "vqa_gen/vqa_val.tsv"),
    "caption": (("id", "image"), "0,4", "caption/caption_val.tsv"),
    "ground": (("id", "image", "phrase"), "0,4,2", "refcoco/refcoco_val.tsv"),
    "entail": (("id", "image", "hypothesis", "premise"), "0,2,3,4", "snli_ve/snli_ve_dev.tsv"),
    "classify": (("image",), "0", "image_classify/imagenet_1k_val.tsv"),
    "summarise": (("text",), "0", "gigaword/dev.tsv"),
}


@pytest.mark.parametrize("command", RELEASED)
def test_released_columns_are_read(command):
    names, columns, file = RELEASED[command]
    assert not [item for item in open_items(str(GOLDEN / file), names, columns).read(()) if item.problem]


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("answer", "caption/caption_val.tsv"),
        ("answer", "refcoco/refcoco_val.tsv"),
        ("caption", "vqa_gen/vqa_val.tsv"),
        ("caption", "gigaword/dev.tsv"),
        ("entail", "vqa_gen/vqa_val.tsv"),
        ("classify", "caption/caption_val.tsv"),
        ("summarise", "image_classify/imagenet_1k_val.tsv"),
    ],
)
def test_a_file_of_another_task_is_one_sentence(command, file):
    names, columns, _ = RELEASED[command]
    with pytest.raises(UserError, match=r"line [123]: .*name others .*--selected-cols"):
        open_items(str(GOLDEN / file), names, columns)


def test_half_a_surrogate_is_one_item_that_cannot_be_answered(tmp_path):
    path = Path(__file__).parents[1] / "cases" / "surrogate.jsonl"
    items = list(open_items(str(path), ("id", "image", "question"), "0,5,2").read(()))
    assert [bool(item.problem) for item in items] == [False, True, False] and "surrogate" in items[1].problem
    halves = [{"text": "a\udc00"}, {"id": "x\ud800", "text": "a"}, {"text": "\U0001f600"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(half) + "\n" for half in halves))
    items = list(open_items(str(tmp_path / "a.jsonl"), ("id", "text"), "0,1").read(()))
    assert [bool(item.problem) for item in items] == [True, False, False]
