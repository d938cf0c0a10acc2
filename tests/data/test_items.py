"""Inputs of predict.py: tables, JSON files, and folders: what counts as an image, and what is said of the rest."""

import json
from functools import partial
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from data.builders.json_items import open_json
from data.items import open_items
from data.table_files import image_endings, image_files
from tests.sources import ARROW_SOURCES, write_parquet, write_source
from utils.errors import UserError

IMAGE = ("id", "image")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    (tmp_path / "more" / "deep").mkdir(parents=True)
    for name in ("a.jfif", "b.JPE", "c.avif", "d.ppm", "e.webp", "f.jp2", "more/g.png", "more/deep/h.tiff"):
        (tmp_path / name).write_bytes(b"")
    for name in ("notes.txt", "film.mpg", "more/README"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.fixture
def rows(tmp_path: Path, monkeypatch) -> list[dict]:
    """Rows whose images are in the folder `photos`, with an id of another name."""
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"an image")
    return [
        {"key": 7, "image": "a.png", "question": "what,\nwhere?", "note": "x"},
        {"key": 8, "image": "b.png", "question": "who?", "note": None},
        {"key": 9, "image": "a.png", "question": None, "note": None},
    ]


def test_ids_that_pandas_has_made_floats_are_integers_again(tmp_path, rows):
    columns = {"id": [4.0, float("nan"), 1.5, float("inf")], "image": ["photos/a.png"] * 4}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    items = list(open_items(str(tmp_path / "a.parquet"), ("id", "image"), "0,1").read())
    assert [item.id for item in items] == [4, None, "1.5", None]
    assert [item.problem for item in items] == ["", "", "", "'id' is inf: write a text, a number, or a list of either"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", *ARROW_SOURCES])
def test_tables_have_the_keys_of_jsonl(kind, tmp_path, rows):
    path = str(write_source(kind, tmp_path, rows))
    names, columns = ("id", "image", "question", "objects"), {"id": "key"}
    open_it = open_json if kind == "json" else partial(open_items, selected_cols="0,1,2")
    options = {"columns": columns, "image_root": str(tmp_path / "photos")}
    source = open_it(path, names=names, **options)
    one, two, three = source.read()
    ids = ["7", "8", "9"] if kind == "csv" else [7, 8, 9]
    assert source.size == 3 and [item.id for item in (one, three)] == [ids[0], ids[2]]
    images = [item.values["image"] for item in (one, three)]
    assert [Path(x).read_bytes() if isinstance(x, str) else x for x in images] == [b"an image"] * 2
    assert one.values["question"] == "what,\nwhere?" and three.values.keys() == {"image"}
    if kind not in ("jsonl", "json"):  # whose images are read later
        assert two.where.endswith("line 4" if kind == "csv" else "row 2") and "there is no image" in two.problem
    texts = open_it(path, names=("id", "question"), **options)
    assert [item.values.get("question") for item in texts.read()] == ["what,\nwhere?", "who?", None]
    if kind not in ("jsonl", "json"):
        with pytest.raises(UserError, match=r"has none of the columns text: .*'note'"):
            open_items(path, ("text",), "0")


def test_folders_with_images_are_read_for_them(album: Path, monkeypatch) -> None:
    monkeypatch.setenv("OFA_CACHE", str(album / "cache"))
    write_parquet(album / "a.parquet", [{"image": b"x"}])
    assert open_items(str(album), IMAGE, "0,1").size == 6
    (album / "only").mkdir()
    write_parquet(album / "only" / "a.parquet", [{"image": b"x"}])
    (item,) = open_items(str(album / "only"), IMAGE, "0,1").read()
    assert item.values == {"image": b"x"}


COCO = {
    "captions.json": {"images": [{"id": 179765, "file_name": "a.png"}, {"id": 5, "file_name": "gone.png"}, {"id": 6}]},
    "questions.json": {
        "data_subtype": "val2014",
        "questions": [
            {"image_id": 42, "question": "what?", "question_id": 42000},
            {"image_id": 43, "question": "what?", "question_id": 43000},
            {"image_id": 42, "question": 5, "question_id": 42002},
            "a question",
        ],
    },
}


def test_coco_and_vqa_files_keep_their_ids(tmp_path, rows):
    (tmp_path / "photos" / "val2014").mkdir()
    (tmp_path / "photos" / "val2014" / "COCO_val2014_000000000042.jpg").write_bytes(b"another")
    for name, content in COCO.items():
        (tmp_path / name).write_text(json.dumps(content))
    one, two, three = open_json(str(tmp_path / "captions.json"), IMAGE, {}, str(tmp_path / "photos")).read()
    assert one.id == 179765 and one.values["image"].endswith("photos/a.png")
    assert two.id == 5 and "gone.png" in two.problem and two.where.endswith("captions.json, images[1]")
    assert "it names no image" in three.problem
    names = ("id", "image", "question", "objects")
    one, two, three, four = open_json(str(tmp_path / "questions.json"), names, {}, None).read()
    assert one.id == 42000 and one.values["question"] == "what?" and "000042.jpg" in one.values["image"]
    assert "there is no image" in two.problem and two.id == 43000
    assert "'question' is not a text" in three.problem and "not a JSON object" in four.problem


@pytest.mark.parametrize("content", ["{}", "[]", '{"annotations": [{"answers": []}]}', '{"questions": []}', "5", "{"])
def test_other_json_files_are_one_sentence(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    words = "is not a JSON file" if content == "{" else "an array of objects, COCO's 'images' or VQA's 'questions'"
    with pytest.raises(UserError, match=words):
        open_json(str(tmp_path / "a.json"), IMAGE, {}, None)
    with pytest.raises(UserError, match="an array of objects are expected|is not a JSON file"):
        open_json(str(tmp_path / "a.json"), ("id", "text"), {}, None)


def test_every_ending_that_pillow_reads_counts(album: Path) -> None:
    source = open_items(str(album), IMAGE, "0,1")
    assert [Path(item.values["image"]).name for item in source.read(())] == [
        "a.jfif", "b.JPE", "c.avif", "d.ppm", "e.webp", "f.jp2",
    ]  # fmt: skip
    assert "left out 2 files without an image extension" in source.left_out
    assert ".txt" in source.left_out and "1 subfolders (--recursive reads them)" in source.left_out


def test_folders_in_folders(album: Path) -> None:
    files, left_out = image_files(album, recursive=True)
    assert [file.name for file in files][-2:] == ["h.tiff", "g.png"] and len(files) == 8
    assert "3 files" in left_out and "no extension" in left_out and "--recursive" not in left_out
    assert open_items(str(album), IMAGE, "0,1", recursive=True).size == 8
    assert image_files(album / "more" / "deep", recursive=False)[1] == ""
    (album / "none").mkdir()
    with pytest.raises(UserError, match="none holds no images"):
        open_items(str(album / "none"), IMAGE, "0,1")


def test_endings_are_those_of_images_only() -> None:
    endings = image_endings()
    assert {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".tif", ".webp", ".avif", ".ppm"} <= endings
    assert not endings & {".mpg", ".mpeg", ".h5", ".hdf", ".eps", ".ps", ".wmf", ".pdf", ".txt"}
    assert endings <= Image.registered_extensions().keys()
