"""Folders as inputs of predict.py: what counts as an image, and what is said of the rest."""

from pathlib import Path

import pytest
from PIL import Image

from data.items import image_endings, image_files, open_items
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


def test_csv_has_the_keys_of_jsonl(tmp_path):
    (tmp_path / "a.png").write_bytes(b"an image")
    (tmp_path / "a.csv").write_text('id,image,question,note\n7,a.png,"what,\nwhere?",x\n8,b.png,who?,\n,aGFsbG8=,,\n')
    source = open_items(str(tmp_path / "a.csv"), ("id", "image", "question", "objects"), "0,1,2")
    one, two, three = source.read()
    assert source.size == 3 and (one.id, one.values) == ("7", {"image": b"an image", "question": "what,\nwhere?"})
    assert two.where.endswith("a.csv, line 3") and "there is no image" in two.problem
    assert three.values == {"image": b"hallo"}
    texts = open_items(str(tmp_path / "a.csv"), ("id", "question"), "0,1")
    assert [item.values.get("question") for item in texts.read()] == ["what,\nwhere?", "who?", None]
    with pytest.raises(UserError, match=r"a.csv has none of the columns text: .*'note'"):
        open_items(str(tmp_path / "a.csv"), ("text",), "0")


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
