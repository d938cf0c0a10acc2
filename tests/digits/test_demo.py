"""The demo data: deterministic, disjoint, encodable, and drawn as the captions say."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from digits.__main__ import main
from digits.caption import all_captions, scene_caption
from digits.handwriting import SPLITS, DigitSamples, load_digit_samples, vary
from digits.scene import Scene, close_up, random_scene, render
from digits.tasks import TASKS
from digits.words import COLOURS, DIGITS, GRID, POSITIONS

ROWS = {"train": 12, "val": 4, "test": 5}
NAMES = {"train": "caption_stage1_train.tsv", "val": "caption_val.tsv", "test": "caption_test.tsv"}


FOLDERS = {
    "first", "caption_data", "vqa_data",
    "refcoco_data", "snli_ve_data", "imagenet_1k_data", "gigaword_data", "glue_data",
    "pretrain_data", "coco_image_gen_data"
}  # fmt: skip


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
    for name in again:
        assert (other[name] != again[name]) == name.endswith((".tsv", "coco_format.json", "all_captions.txt")), name


def test_a_row_does_not_depend_on_the_number_of_rows(demo: Path, tmp_path: Path) -> None:
    longer = contents(build(tmp_path, "--train", "15", "--val", "6", "--test", "7"))
    for name, table in contents(demo).items():
        if name.endswith(".tsv"):
            assert longer[name].startswith(table) and longer[name] != table, name


@pytest.mark.parametrize(
    ("split", "columns", "digest"),
    [
        ("train", ["0", "100000", "a yellow seven at the bottom left", "yellow seven"], "cd7f88dc85b3"),
        ("test", ["0", "300000", "a white five at the right", "white five"], "b4ca8b9aba45"),
    ],
)
def test_captions_stay_what_they_were(demo: Path, split: str, columns: list[str], digest: str) -> None:
    first = rows(demo, split)[0]
    assert first[:4] == columns
    assert hashlib.sha256(first[4].encode()).hexdigest().startswith(digest)


def test_every_task_has_its_folder_and_rows(demo: Path) -> None:
    assert {path.name for path in demo.iterdir()} == FOLDERS
    for task in TASKS.values():
        for split, name in task.files:
            assert (demo / task.folder / name).read_bytes().count(b"\n") == ROWS[split]


def test_chosen_tasks_only(demo: Path, tmp_path: Path) -> None:
    chosen, whole = contents(build(tmp_path, "--tasks", "caption,rte")), contents(demo)
    assert chosen == {name: whole[name] for name in whole if name.startswith(("caption", "glue_data/rte"))}


def test_rows_have_the_released_columns(demo: Path) -> None:
    image_ids = []
    for split, count in ROWS.items():
        table = rows(demo, split)
        assert [row[0] for row in table] == [str(number) for number in range(count)]
        for number, (_, image_id, caption, names, image) in enumerate(table):
            phrases, wanted = caption.split(" and "), 1 + number % 3 if split == "train" else 1
            assert image_id.isdigit() and len(phrases) == wanted and set(phrases) <= set(all_captions())
            assert all(name in phrase for name, phrase in zip(names.split("&&"), phrases, strict=True))
            with Image.open(io.BytesIO(base64.urlsafe_b64decode(image))) as picture:
                assert (picture.format, picture.size, picture.mode) == ("JPEG", (48, 48), "RGB")
            image_ids.append(image_id)
    assert len(set(image_ids)) == len(image_ids) == sum(ROWS.values())


@pytest.mark.parametrize(("name", "digits"), [("two_digits", 2), ("three_digits", 3), ("test", 1)])
def test_files_of_more_digits_name_them_in_reading_order(demo: Path, name: str, digits: int) -> None:
    lines = (demo / "caption_data" / f"caption_{name}.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == ROWS["test"]
    for line in lines:
        places = [phrase.split(" at the ")[1] for phrase in line.split("\t")[2].split(" and ")]
        assert len(places) == digits and places == sorted(places, key=list(POSITIONS).index)


def test_handwriting_of_the_splits_is_disjoint_and_complete() -> None:
    numbers = [set(load_digit_samples(split).numbers.tolist()) for split in SPLITS]
    assert set.union(*numbers) == set(range(1797))
    assert sum(map(len, numbers)) == 1797
    for split in SPLITS:
        samples = load_digit_samples(split)
        assert samples.ink.shape == (len(samples.digits), 8, 8) and samples.ink.max() == 1
        assert set(samples.digits.tolist()) == set(range(10))


def as_they_are(samples: DigitSamples, digit: int, written: list[np.ndarray]) -> list[bool]:
    return [any(np.array_equal(ink, sample) for sample in samples.of(digit)) for ink in written]


def test_varied_handwriting_is_no_sample_and_repeats() -> None:
    for varied in (False, True):
        samples = load_digit_samples("train", varied)
        twice = [[samples.write(8, np.random.default_rng(seed)) for seed in range(8)] for _ in range(2)]
        assert all(map(np.array_equal, *twice)), "the same random numbers write the same"
        assert as_they_are(samples, 8, twice[0]) == [not varied] * 8


def test_only_captions_to_train_on_vary() -> None:
    for name, task in TASKS.items():
        for file, (split, _) in enumerate(task.files):
            made = [column for column in task.row(file, 0, 1, 48) if isinstance(column, Scene)]
            unvaried = replace(task, varied=False).row(file, 0, 1, 48)
            changed = [one.objects[0].ink.tolist() for one in made] != [
                column.objects[0].ink.tolist() for column in unvaried if isinstance(column, Scene)
            ]
            assert changed == (name == "caption" and split == "train"), (name, split)


def test_a_varied_digit_keeps_its_ink_on_the_paper() -> None:
    ink = load_digit_samples("train").of(0)[0]
    for seed in range(50):
        varied = vary(ink, np.random.default_rng(seed))
        assert 0.7 < varied.sum() / ink.sum() < 1.5 and varied.max() > 0.8
        assert not np.concatenate([varied[[0, -1]].ravel(), varied[:, [0, -1]].ravel()]).any()


def test_scenes_use_the_handwriting_of_their_split_and_digit() -> None:
    for number in range(20):
        scene = TASKS["caption"].row(2, number, seed=1, size=96)[-1]
        assert isinstance(scene, Scene)
        (item,) = scene.objects
        height, width = item.ink.shape[0] - 2, item.ink.shape[1] - 2
        strokes = item.ink[1:-1, 1:-1]
        written = load_digit_samples("test").of(DIGITS.index(item.spec.digit))
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
        (spec,) = scene.specs
        assert scene_caption(scene) == f"a {spec.colour} {spec.digit} at the {spec.position}"


def test_image_shows_the_colour_at_the_position() -> None:
    table = np.array(list(COLOURS.values()), dtype=np.float32)
    for scene in scenes(100):
        (item,) = scene.objects
        pixels = np.asarray(render(scene), dtype=np.float32)
        bright = pixels.max(axis=-1) > 160
        rows_, columns = np.nonzero(bright)
        cell = POSITIONS[item.spec.position]
        assert int(columns.mean() * GRID / scene.size) == cell.column
        assert int(rows_.mean() * GRID / scene.size) == cell.row
        brightest = pixels[bright].mean(axis=0)
        assert list(COLOURS)[np.abs(table - brightest).sum(axis=1).argmin()] == item.spec.colour


def test_several_digits_do_not_overlap_and_stay_in_their_boxes() -> None:
    for scene in scenes(30, objects=3):
        drawn = np.asarray(render(scene)).astype(int)
        empty = np.asarray(render(Scene((), scene.size, scene.texture_seed))).astype(int)
        boxes = np.zeros(drawn.shape[:2], dtype=int)
        for item in scene.objects:
            assert 0 <= item.box.left < item.box.right <= scene.size
            assert 0 <= item.box.top < item.box.bottom <= scene.size
            boxes[item.box.top : item.box.bottom, item.box.left : item.box.right] += 1
        assert boxes.max() == 1 and len({spec.position for spec in scene.specs}) == 3
        assert np.array_equal(drawn[boxes == 0], empty[boxes == 0])
        assert scene_caption(scene).count(" and ") == 2


def test_close_up_nearly_fills_the_canvas() -> None:
    rng = np.random.default_rng(0)
    for digit in range(10):
        scene = close_up(load_digit_samples("train"), rng, 48, digit)
        (item,) = scene.objects
        sides = item.box.right - item.box.left, item.box.bottom - item.box.top
        assert item.spec.digit == DIGITS[digit] and max(sides) > 35
        assert min(item.box) >= 0 and max(item.box) <= 48


def test_card_hides_one_position() -> None:
    (scene,) = scenes(1)
    covered, open_ = (np.asarray(render(replace(scene, card=card))) for card in ("top right", None))
    assert (covered[:32, 64:] == covered[0, 64]).all() and 100 < covered[0, 64].mean() < 140
    assert np.array_equal(covered[32:], open_[32:]) and np.array_equal(covered[:, :64], open_[:, :64])


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


@pytest.mark.parametrize(
    "mistake",
    [["--size", "8"], ["--train", "-1"], ["--seed", "-3"], ["--val", "many"], ["--tasks", "caption,chess"]],
)
def test_senseless_numbers_are_refused(tmp_path: Path, mistake: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "out"), *mistake])
    assert not (tmp_path / "out").exists()
