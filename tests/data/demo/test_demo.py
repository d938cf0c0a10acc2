"""The demo data: deterministic, disjoint, encodable, and drawn as the captions say."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.demo.__main__ import main
from data.demo.caption import all_captions, caption_scene, scene_caption
from data.demo.digits import SPLITS, load_digit_samples
from data.demo.scene import Scene, random_scene, render
from data.demo.vocabulary import demo_texts
from data.demo.words import COLOURS, DIGITS, GRID, POSITIONS
from data.text import Vocabulary

ROWS = {"train": 12, "val": 4, "test": 5}
NAMES = {"train": "caption_stage1_train.tsv", "val": "caption_val.tsv", "test": "caption_test.tsv"}


def build(folder: Path, *more: str) -> Path:
    counts = [word for split, count in ROWS.items() for word in (f"--{split}", str(count))]
    assert main([str(folder), *counts, "--size", "48", *more]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("demo"))


def rows(demo: Path, split: str) -> list[list[str]]:
    text = (demo / "caption_data" / NAMES[split]).read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]


def scenes(count: int, objects: int = 1, size: int = 96) -> Iterator[Scene]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield random_scene(load_digit_samples("train"), rng, size, objects)


def test_the_same_seed_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    again, other = contents(build(tmp_path / "again")), contents(build(tmp_path / "other", "--seed", "2"))
    assert contents(demo) == again
    for name in NAMES.values():
        assert other[f"caption_data/{name}"] != again[f"caption_data/{name}"]


def test_a_row_does_not_depend_on_the_number_of_rows(demo: Path, tmp_path: Path) -> None:
    longer = rows(build(tmp_path, "--train", "15"), "train")
    assert longer[: ROWS["train"]] == rows(demo, "train") and len(longer) == 15


def test_rows_have_the_released_columns(demo: Path) -> None:
    image_ids = []
    for split, count in ROWS.items():
        table = rows(demo, split)
        assert [row[0] for row in table] == [str(number) for number in range(count)]
        for _, image_id, caption, label, image in table:
            assert image_id.isdigit() and caption in all_captions() and label in caption
            with Image.open(io.BytesIO(base64.urlsafe_b64decode(image))) as picture:
                assert (picture.format, picture.size, picture.mode) == ("JPEG", (48, 48), "RGB")
            image_ids.append(image_id)
    assert len(set(image_ids)) == len(image_ids) == sum(ROWS.values())


def test_handwriting_of_the_splits_is_disjoint_and_complete() -> None:
    numbers = [set(load_digit_samples(split).numbers.tolist()) for split in SPLITS]
    assert set.union(*numbers) == set(range(1797))
    assert sum(map(len, numbers)) == 1797
    for split in SPLITS:
        samples = load_digit_samples(split)
        assert samples.ink.shape == (len(samples.digits), 8, 8) and samples.ink.max() == 1
        assert set(samples.digits.tolist()) == set(range(10))


def test_scenes_use_the_handwriting_of_their_split_and_digit() -> None:
    for number in range(20):
        (item,) = caption_scene("test", number, seed=1, size=96).objects
        height, width = item.ink.shape[0] - 2, item.ink.shape[1] - 2
        strokes = item.ink[1:-1, 1:-1]
        written = load_digit_samples("test").of(item.digit)
        assert any(
            np.array_equal(strokes, ink[top : top + height, left : left + width])
            for ink in written
            for top in range(9 - height)
            for left in range(9 - width)
        )


def test_captions_are_540_and_name_what_is_drawn() -> None:
    captions = all_captions()
    assert len(captions) == len(set(captions)) == len(DIGITS) * len(COLOURS) * len(POSITIONS) == 540
    assert "a red seven at the top left" in captions
    for scene in scenes(50):
        (item,) = scene.objects
        assert scene_caption(scene) == f"a {item.colour} {DIGITS[item.digit]} at the {item.position}"


def test_picture_shows_the_colour_at_the_position() -> None:
    table = np.array(list(COLOURS.values()), dtype=np.float32)
    for scene in scenes(100):
        (item,) = scene.objects
        pixels = np.asarray(render(scene), dtype=np.float32)
        bright = pixels.max(axis=-1) > 160
        rows_, columns = np.nonzero(bright)
        cell = POSITIONS[item.position]
        assert int(columns.mean() * GRID / scene.size) == cell.column
        assert int(rows_.mean() * GRID / scene.size) == cell.row
        brightest = pixels[bright].mean(axis=0)
        assert list(COLOURS)[np.abs(table - brightest).sum(axis=1).argmin()] == item.colour


def test_several_digits_do_not_overlap_and_stay_in_their_boxes() -> None:
    for scene in scenes(30, objects=3):
        drawn = np.asarray(render(scene)).astype(int)
        empty = np.asarray(render(Scene((), scene.size, scene.texture_seed))).astype(int)
        boxes = np.zeros(drawn.shape[:2], dtype=int)
        for item in scene.objects:
            assert 0 <= item.box.left < item.box.right <= scene.size
            assert 0 <= item.box.top < item.box.bottom <= scene.size
            boxes[item.box.top : item.box.bottom, item.box.left : item.box.right] += 1
        assert boxes.max() == 1 and len({item.position for item in scene.objects}) == 3
        assert np.array_equal(drawn[boxes == 0], empty[boxes == 0])
        assert scene_caption(scene).count(" and ") == 2


def test_every_text_is_encodable_in_the_small_vocabulary(demo: Path) -> None:
    vocab = Vocabulary.load(demo / "BPE")
    assert vocab.code_start == 2000
    for text in demo_texts():
        for spaced in (text.lstrip(), " " + text.lstrip()):
            ids = vocab.encode(spaced)
            assert vocab.unk not in ids and vocab.decode(ids) == spaced
    assert {vocab.index(str(byte)) for byte in range(256)}.isdisjoint({vocab.unk})


def test_references_load_in_the_coco_tools(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = demo / "caption_data" / "test_caption_coco_format.json"
    table = {row[1]: row[2] for row in rows(demo, "test")}
    references = COCO(str(path))
    references.info()
    assert references.getImgIds() == list(table)
    predictions = [{"image_id": image_id, "caption": "a digit"} for image_id in table]
    assert references.loadRes(predictions).getImgIds() == list(table)
    for image_id, caption in table.items():
        assert [each["caption"] for each in references.imgToAnns[image_id]] == [caption]
    assert json.loads(path.read_text())["type"] == "captions"


def test_a_missing_vocabulary_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data.demo.vocabulary.BPE_DIR", tmp_path / "nowhere")
    assert main([str(tmp_path / "out"), "--train", "1", "--val", "1", "--test", "1"]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("mistake", [["--size", "8"], ["--train", "-1"], ["--seed", "-3"], ["--val", "many"]])
def test_senseless_numbers_are_refused(tmp_path: Path, mistake: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "out"), *mistake])
    assert not (tmp_path / "out").exists()
