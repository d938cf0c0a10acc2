"""The checker on the four pretraining files: what it takes, what it names and counts."""

import shutil
from pathlib import Path

import pytest

from data.validate import main

CODES = 256  # of a whole image, as many as of the middle of the others
GOLDEN = Path(__file__).parents[1] / "golden" / "tsv" / "pretrain"
FILES = {
    "pretrain": "vision_language",
    "pretrain_text": "text",
    "pretrain_image": "image",
    "pretrain_detection": "detection",
    "pretrain_image_gen": "image_gen",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(GOLDEN, tmp_path / "pretrain"))
    codes = " ".join(["5"] * CODES)
    (copy / "image_gen_examples.tsv").write_text(f"0\t{codes}\ta cup\n1\t{codes}\ta cat\n")
    return copy


def check(folder: Path, kind: str, *more: str) -> int:
    return main([kind, f"{folder}/{FILES[kind]}_examples.tsv", "--workers=0", *more])


@pytest.mark.parametrize("kind", FILES)
def test_good_files(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = len((folder / f"{FILES[kind]}_examples.tsv").read_text().splitlines())
    assert check(folder, kind) == 0
    assert f"{lines} of {lines} rows are good." in capsys.readouterr().out


def test_matching_is_checked_with_its_wrong_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(folder, "pretrain", f"--neg-sample-dir={folder}/negative_sample") == 0
    (folder / "negative_sample/object.txt").unlink()
    assert check(folder, "pretrain", f"--neg-sample-dir={folder}/negative_sample") == 2
    assert "There is no file" in (error := capsys.readouterr().err) and "object.txt" in error


@pytest.mark.parametrize(
    "kind, column, value, words",
    [
        ("pretrain", 7, "vqa", "the type is ..., not one of caption, qa, visual_grounding"),
        ("pretrain", 7, "caption", "the caption has no words"),
        ("pretrain_text", 1, " ", "the text has no words"),
        ("pretrain_image", 2, " ".join(["8192"] * 256), "image code ... is outside ..."),
        ("pretrain_image", 2, " ".join(["-1"] * 256), "is outside ..."),
        ("pretrain_image", 2, "5 6", "the row has ... image codes, not ..."),
        ("pretrain_detection", 2, "", "the row has no objects"),
        ("pretrain_image_gen", 1, "7 8 9", "the row has ... image codes, not ..."),
        ("pretrain_image_gen", 2, " ", "the text has no words"),
        ("pretrain_detection", 2, "9,9,2,2,1,cup", "has no area"),
    ],
)
def test_bad_rows_are_counted(
    folder: Path, kind: str, column: int, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / f"{FILES[kind]}_examples.tsv"
    lines = path.read_text().splitlines()
    fields = lines[1].split("\t")  # the second pair is a question, without a caption
    fields[column] = value
    path.write_text("\n".join([lines[0], "\t".join(fields), *lines[2:]]) + "\n")
    assert check(folder, kind) == 1
    output = capsys.readouterr().out
    assert f"{path}, line 2: " in output and f"{len(lines) - 1} of {len(lines)} rows are good." in output
    assert output.splitlines()[-1].startswith("1 x ") and words in output.splitlines()[-1]
