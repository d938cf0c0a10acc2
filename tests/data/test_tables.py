"""CSV and JSON lines: the same rows as TSV files, images from paths, and mistakes named in a sentence."""

import base64
import csv
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value, disable_progress_bars
from datasets import Image as HfImage
from PIL import Image
from torch.utils.data import DataLoader

from data import row_index
from data.base import DataConfig
from data.caption import CaptionDataset
from data.images import decode_base64
from data.items import open_items
from data.row_index import ChangedFileError, IndexedFile
from data.sample import SkippedRow
from data.sharding import Read, plan_batches
from data.table_files import column_names
from data.tables import open_rows
from data.tasks import TASKS
from data.text import Vocabulary
from data.text_tables import CsvTable, JsonLines
from data.tsv import TsvFile
from data.validate import main as validate
from tests.programs import ROOT
from tests.sources import (
    FILE_SOURCES,
    SOURCES,
    columns_of,
    write_csv,
    write_image_folder,
    write_json,
    write_jsonl,
    write_parquet,
    write_source,
)
from utils.errors import BadRowError, UserError

disable_progress_bars()
TSV = ROOT / "tests/golden/tsv"
FILES = {
    "caption": "caption/caption_train.tsv", "vqa_gen": "vqa_gen/vqa_train.tsv", "refcoco": "refcoco/refcoco_train.tsv",
    "snli_ve": "snli_ve/snli_ve_train.tsv", "image_classify": "image_classify/imagenet_1k_train.tsv",
    "image_gen": "image_gen/coco_vqgan_train.tsv", "gigaword": "gigaword/train.tsv",
    **{name: f"{name}/{name}_train.tsv" for name in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")},
}  # fmt: skip


GOOD_ROWS = [{"id": "1", "image": "a.png", "caption": "a cat"}]


def options(**given):
    return SimpleNamespace(**{"columns": None, "image_root": None, "add_object": False, "add_caption": False, **given})


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(ROOT / "digits/BPE")


@pytest.mark.parametrize(
    "task, kind",
    [
        (task, kind)
        for task in TASKS
        for kind in SOURCES
        if kind != "tsv" and ("image" in TASKS[task].names or kind != "folder")
    ],
)
def test_rows_are_those_of_the_released_files(task, kind, tmp_path):
    row = TASKS[task]
    tsv = TsvFile(TSV / FILES[task], row.selected_cols)
    records = [dict(zip(row.names, tsv[i], strict=True)) for i in range(len(tsv))]
    given = options(columns=columns_of(kind, row.names))
    rows = open_rows(str(write_source(kind, tmp_path, records)), "7,8", row, given)
    place = row.names.index("image") if "image" in row.names else None
    read = [rows[i] for i in range(len(rows))]
    assert read == [rows[i - len(rows)] for i in range(len(rows))] and len(tsv) == len(rows)
    expected = [list(tsv[i]) for i in range(len(tsv))]
    if place is not None and kind in FILE_SOURCES:
        for values in expected:
            values[place] = decode_base64(values[place])
    assert read == list(map(tuple, expected))
    if place is not None and kind not in FILE_SOURCES:
        (tmp_path / "images").mkdir()
        for number, record in enumerate(records):
            record["file"] = f"{number} é" if number == 0 else f"{number}.jpg"
            image = decode_base64(record.pop("image"))
            (tmp_path / "images" / record["file"]).write_bytes(image)
        by_path = open_rows(
            str(write_source(kind, tmp_path / "images", records)),
            None,
            row,
            options(columns="image=file", image_root=str(tmp_path / "images")),
        )
        for values in expected:
            values[place] = decode_base64(values[place])
        assert [by_path[i] for i in range(len(tsv))] == list(map(tuple, expected))


def captions(count, bad=()):
    """Rows of captions; the image of the `bad` ones is none."""
    rows = []
    for number in range(count):
        image = png(number) if number not in bad else b"this is not an image"
        rows.append({"id": f"n{number}", "image": base64.b64encode(image).decode(), "caption": f"caption {number}"})
    return rows


def png(number):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 0, 255)).save(file, "PNG")
    return file.getvalue()


def open_captions(kind, path):
    return open_rows(str(path), None, TASKS["caption"], options(columns=columns_of(kind, TASKS["caption"].names)))


@pytest.mark.parametrize("kind", SOURCES)
def test_one_engine_reads_all(kind, tmp_path, vocab):
    """Numbers, pickling, workers, shuffling, resuming and bad rows are those of TSV files."""
    records = captions(9, bad=[4])
    config = TASKS["caption"].config(patch_image_size=8, skip_bad_rows=True)
    (tmp_path / "tsv").mkdir()
    tsv = open_captions("tsv", write_source("tsv", tmp_path / "tsv", records))
    expected = CaptionDataset(tsv, vocab, config, "train")
    rows = open_captions(kind, write_source(kind, tmp_path, records))
    dataset = CaptionDataset(rows, vocab, config, "train")
    with pytest.raises(IndexError):
        rows[9]
    with pytest.raises(BadRowError, match=re.escape(f"{rows.path}, {rows.place(4)}: ")):
        CaptionDataset(rows, vocab, replace(config, skip_bad_rows=False), "train")[4]
    plan = plan_batches(len(dataset), 2, 0, 1, seed=3, epoch=2, shuffle=True)
    rest = plan_batches(len(dataset), 2, 0, 1, seed=3, epoch=2, shuffle=True, read=[Read(1, 2, 2)])
    assert [list(batch) for batch in rest] == [list(batch) for batch in plan[2:]]
    again = CaptionDataset(pickle.loads(pickle.dumps(rows)), vocab, config, "train")
    for there, batches, workers in ((dataset, plan, 2), (again, rest, 0)):
        loader = DataLoader(there, batch_sampler=batches, num_workers=workers, collate_fn=list)
        for numbers, samples in zip(batches, loader, strict=True):
            for number, sample in zip(numbers, samples, strict=True):
                if number == 4:
                    assert isinstance(sample, SkippedRow) and rows.place(4) in sample.message
                else:
                    assert sample["id"] == f"n{number}"
                    assert torch.equal(sample["patch_image"], expected[number]["patch_image"])
                    assert torch.equal(sample["target"], expected[number]["target"])


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_that_changes_while_it_is_read(kind, tmp_path):
    path = write_source(kind, tmp_path, captions(4))
    rows = open_captions(kind, path)
    packed = pickle.dumps(rows)
    assert rows[3][0] == "n3" and pickle.loads(packed)[3] == rows[3]
    (tmp_path / "other").mkdir()
    other = write_source(kind, tmp_path / "other", captions(5))
    for file in [other, *other.rglob("*")]:
        if file.is_file():
            (path / file.relative_to(other)).write_bytes(file.read_bytes())  # in place
    for there in (rows, pickle.loads(packed)):
        assert str(ChangedFileError(str(ChangedFileError("a")))) == "a was changed while it was in use; start again."
        with pytest.raises(UserError, match="was changed while it was in use; start again") as caught:
            for number in range(len(there)):
                there[number]
        assert not isinstance(caught.value, BadRowError)  # which --skip-bad-rows would leave out, row for row
    assert len(open_captions(kind, path)) == 5


def test_images_as_bytes_and_as_the_images_of_the_library(tmp_path):
    images = [png(number) for number in range(3)]
    table = {"picture": images, "title": ["a", "b", "c"], "nested": [{"key": 5}, {"key": None}, {"key": 7}]}
    (tmp_path / "p.png").write_bytes(images[2])
    pictures = [{"bytes": images[0], "path": "x"}, {"bytes": images[1], "path": None}, str(tmp_path / "p.png")]
    features = Features({"picture": HfImage(), "title": Value("string"), "nested": {"key": Value("int64")}})
    Dataset.from_dict(table).to_parquet(tmp_path / "a.parquet")
    data = Dataset.from_dict({**table, "picture": pictures}, features)
    data.to_parquet(tmp_path / "b.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    given = options(columns="image=picture,caption=title,id=nested.key", image_root=str(tmp_path))
    for name in ("a.parquet", "b.parquet", "saved"):
        rows = open_rows(str(tmp_path / name), None, TASKS["caption"], given)
        assert [rows[i] for i in range(3)] == [("5", images[0], "a"), ("1", images[1], "b"), ("7", images[2], "c")]


@pytest.mark.parametrize("table, classes", [("metadata.csv", 3), ("metadata.jsonl", 3), (None, 3), (None, 1)])
def test_folders_of_images(table, classes, tmp_path):
    if table:
        write_image_folder(tmp_path / "a", [{"image": png(n), "name": f"class {n}"} for n in range(3)], table)
        columns, names = None, ["class 0", "class 1", "class 2"]
    else:
        columns, names = "name=label", ["cat", "dog", "train"][:classes]
        for number, name in enumerate(names):  # names of splits are classes like others
            (tmp_path / "a" / name).mkdir(parents=True)
            (tmp_path / "a" / name / f"test_{number}.png").write_bytes(png(number))
    rows = open_rows(str(tmp_path / "a"), None, TASKS["image_classify"], options(columns=columns))
    assert [rows[i] for i in range(classes)] == [(png(number), name) for number, name in enumerate(names)]
    min((tmp_path / "a").rglob("*.*g")).unlink()
    place = {None: "row 1", "metadata.csv": "metadata.csv, line 2", "metadata.jsonl": "metadata.jsonl, line 1"}[table]
    assert rows.place(0).startswith(f"{place} (")
    with pytest.raises(BadRowError, match=r", .*\((photos/00000 test\.jpg|cat/test_0\.png)\): there is no image"):
        rows[0]


def write_text(path, text):
    path = path.with_suffix(".json")
    path.write_text(text)
    return path


ODD_ROWS = [
    {"id": "007", "image": "a.png", "question": "a?", "answers": "None", "date": "2024-01-01"},
    {
        "id": 8,
        "image": "a.png",
        "question": ["a?"],
        "answers": {"no": 1, "n/a": 0.3},
        "date": None,
        "extra": {"x": [1]},
    },
    {"id": "2024-01-02", "image": "a.png", "question": "[a]", "answers": 1.0, "date": "x"},
    {"id": "x", "image": "a.png", "question": "null", "answers": 0.5, "date": 3},
    {"id": 1, "image": "a.png", "question": "NA", "answers": "007", "date": "2024-01-01T00:00:00"},
]


@pytest.mark.parametrize("kind", ["json", "jsonl", "folder", "pretty"])
def test_values_are_what_the_file_says_whatever_stands_in_other_rows(kind, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{**row, "image": (tmp_path / "a.png").read_bytes()} for row in ODD_ROWS] if kind == "folder" else ODD_ROWS
    if kind == "pretty":
        path = write_text(tmp_path / "a", f"\ufeff\n\n{json.dumps(rows, indent=1)}\r\n")
    else:
        path = write_source(kind, tmp_path, rows)
    table = open_rows(str(path), None, TASKS["vqa_gen"], options())
    found = [(row[0], *row[2:4]) for row in (table[n] for n in range(len(table)))]
    assert found == [
        ("007", "a?", "1.0|!+None"), ("8", "a?", "1|!+no&&0.3|!+n/a"), ("2024-01-02", "[a]", "1.0|!+1"),
        ("x", "null", "1.0|!+0.5"), ("1", "NA", "1.0|!+007"),
    ]  # fmt: skip
    dates = open_rows(str(path), None, TASKS["vqa_gen"], options(columns="question=date,objects=extra.x"))
    assert (dates[0][2], dates[4][2], dates[3][2]) == ("2024-01-01", "2024-01-01T00:00:00", "3")
    with pytest.raises(BadRowError, match="there is no 'date'"):
        dates[1]


def test_an_array_that_is_gone_and_a_cache_that_several_processes_fill(tmp_path, monkeypatch):
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = write_text(tmp_path / "a", json.dumps([{**GOOD, "caption": f"\u2028 {n}"} for n in range(2000)]))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.starmap(_captions_of, [(str(path),)] * 4)
    assert found == [[f"\u2028 {n}" for n in range(2000)]] * 4
    rows = open_rows(str(path), None, TASKS["caption"], options())
    path.unlink()
    with pytest.raises(UserError, match="was changed while it was in use"):
        rows[0]
    (tmp_path / "file").touch()
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"a\.json cannot be read .*: set OFA_CACHE to a folder\."):
        open_rows(str(write_text(tmp_path / "a", "[{}]")), None, TASKS["caption"], options())


def _captions_of(path):
    rows = open_rows(path, None, TASKS["caption"], options())
    return [rows[n][2] for n in range(len(rows))]


def test_csv_beside_images_is_text(tmp_path, caplog):
    rows = [
        {"id": f"0{n}", "question": "what?", "answers": a, "image": png(n)}
        for n, a in enumerate(["None", "n/a", "1.50"])
    ]
    path = write_image_folder(tmp_path / "a", rows, "metadata.csv")
    (path / "more").mkdir()
    (path / "more" / "metadata.jsonl").write_text(
        json.dumps({"id": 9, "file_name": "b.png", "question": "x", "answers": 2})
    )
    for name in ("more/b.png", "more/left.png", ".hidden.png"):
        (path / name).write_bytes(png(7))
    table = open_rows(str(path), None, TASKS["vqa_gen"], options())
    assert [(row[0], row[1], row[3]) for row in (table[n] for n in range(len(table)))] == [
        ("00", png(0), "1.0|!+None"), ("01", png(1), "1.0|!+n/a"), ("02", png(2), "1.0|!+1.50"),
        ("9", png(7), "1.0|!+2"),
    ]  # fmt: skip
    assert f"{path} has 5 images and metadata for 4: the others are left out." in caplog.text
    assert pickle.loads(pickle.dumps(table)).place(3) == "more/metadata.jsonl, line 1 (b.png)"
    (path / ".old").mkdir()
    (path / ".old" / "metadata.csv").write_text("file_name,id,question,answers\na.png,1,x,y\n")
    assert len(open_rows(str(path), None, TASKS["vqa_gen"], options())) == 4
    shutil.copy(path / "metadata.csv", path / "more")
    with pytest.raises(UserError, match="/more has metadata in several files: leave one of them, as rows would come"):
        open_rows(str(path), None, TASKS["vqa_gen"], options())
    (path / "more" / "metadata.csv").unlink()
    (path / "more" / "metadata.jsonl").write_text('{"id": 9}\n')
    with pytest.raises(UserError, match="metadata.jsonl has no column 'file_name': name the images in one"):
        open_rows(str(path), None, TASKS["vqa_gen"], options())


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda path: path.with_suffix(".parquet"), "There is no data file"),
        (lambda path: write_jsonl(path.with_suffix(".parquet"), GOOD_ROWS), "cannot be read as parquet"),
        (lambda path: write_jsonl(path.with_suffix(".tar"), GOOD_ROWS), "cannot be read as webdataset"),
        (lambda path: write_text(path, "[1, 2]"), "a.json is an array of '1' and so on, not of objects"),
        (lambda path: write_text(path, '[{"id": 1}, {"id"'), r"a.json is not a JSON array \(.*\): check how it was"),
        (lambda path: write_text(path, '[{"id": 1},\n'), r"a.json is not a JSON array \(its end is missing\)"),
        (lambda path: write_text(path, '[{"id": 1}] []'), r"a.json is not a JSON array \(it does not end with the"),
        (lambda path: write_text(path, "\n [ ]\n"), r"a.json has no rows; check how it was made\."),
        (lambda path: write_json(path.with_suffix(".json"), {"images": [], "annotations": []}), "are 'images', 'ann"),
        (lambda path: path.mkdir() or path, "is an empty folder"),
        (lambda path: (path.mkdir(), write_csv(path / "b.csv", GOOD_ROWS)) and path, "cannot be read as imagefolder"),
        (lambda path: write_parquet(path.with_suffix(".parquet"), [{"img": "a"}]), "no column 'image'.*'img'"),
        (lambda path: DatasetDict(a=Dataset.from_list(GOOD_ROWS)).save_to_disk(path) or path, r"one of them \(a\)"),
        (lambda path: os.mkfifo(path.with_suffix(".parquet")) or path.with_suffix(".parquet"), "not a regular file"),
        (lambda path: "https://host.org/a.parquet", "data are not fetched: download the file"),
        (lambda path: Path("s3://bucket/a.csv"), "data are not fetched"),
        (lambda path: "hf://datasets/a/b", "data are not fetched"),
    ],
)
def test_tables_that_cannot_be_read(write, words, tmp_path):
    with pytest.raises(UserError, match=words):
        open_rows(str(write(tmp_path / "a")), None, TASKS["caption"], options())


def test_nowhere_to_write_the_arrow_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"a.parquet cannot be read .*: set OFA_CACHE to a folder\."):
        open_captions("parquet", write_parquet(tmp_path / "a.parquet", captions(1)))


def test_short_base64_is_no_name_of_a_file(tmp_path):
    """Base64 may be shorter than a path and yet longer than a file's name."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (11, 11, 3), dtype=np.uint8)).save(file, "PNG")
    image = base64.urlsafe_b64encode(file.getvalue()).decode()
    assert 255 < len(image) < 1024 and "/" not in image
    path = write_jsonl(tmp_path / "a.jsonl", [{**GOOD, "image": image}])
    assert open_rows(str(path), None, TASKS["caption"], options())[0][1] == image


def test_an_image_that_is_a_device_or_an_address_is_a_bad_row(tmp_path):
    (tmp_path / "a.png").symlink_to("/dev/zero")
    rows = [{**GOOD, "image": image} for image in ("a.png", " HTTPS:/x.org/b.png")]
    table = open_rows(str(write_jsonl(tmp_path / "a.jsonl", rows)), None, TASKS["caption"], options())
    for row, reason in enumerate(("is a device, not a file", "is a URL: download it")):
        with pytest.raises(BadRowError, match=reason):
            table[row]


def test_the_library_is_an_extra(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", captions(1))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"a.parquet needs Hugging Face datasets: pip install datasets"):
        open_captions("parquet", path)
    assert open_captions("csv", write_source("csv", tmp_path, captions(1)))[0][0] == "n0"


@pytest.mark.parametrize("seed", range(40))
def test_csv_of_any_form_is_read_as_python_does(seed, tmp_path, monkeypatch):
    rng = random.Random(seed)
    monkeypatch.setattr(row_index, "_CHUNK", rng.choice([1, 2, 3, 7, 64, 1 << 20]))
    monkeypatch.setattr(row_index, "_SPARSE", rng.choice([1, 8, 1024]))
    style = {"lineterminator": rng.choice(["\n", "\r\n"]), "quoting": rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])}
    style["delimiter"] = rng.choice(",;|")
    letters = ["a", "é", '"', "\n", "\r\n", " ", "字", ",", ";", "|", "\u2028"]
    rows = [
        {"article": "".join(rng.choices(letters, k=rng.randrange(12))), "summary": f"b{number}"}
        for number in range(rng.randrange(1, 20))
    ]
    path = write_csv(tmp_path / "a.csv", rows, **style)
    if seed % 3 == 0:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + rng.choice([b"", b"\n\n"]))
    table = CsvTable(path, ["summary", "article"])
    assert [table[i] for i in range(-len(table), len(table))] == 2 * [(row["summary"], row["article"]) for row in rows]
    again = pickle.loads(pickle.dumps(table))
    assert again[0] == table[0] and len(again) == len(rows)


def test_values_become_what_tasks_read(tmp_path):
    row = {
        "id": 7.0,
        "image": "aGFsbG8=",
        "question": "what?",
        "answers": {"yes": 0.6, "no": 0.3},
        "objects": ["cat", "dog"],
    }
    rows = [row, {**row, "id": "x", "answers": "no", "objects": None}, {**row, "answers": "1.0|!+maybe"}]
    table = open_rows(str(write_jsonl(tmp_path / "a.jsonl", rows)), None, TASKS["vqa_gen"], options())
    assert table[0] == ("7", "aGFsbG8=", "what?", "0.6|!+yes&&0.3|!+no", "cat&&dog")
    assert table[1][0] == "x" and table[1][3:] == ("1.0|!+no", "") and table[2][3] == "1.0|!+maybe"
    box = [{"image": "aGFsbG8=", "text": "a cat", "box": [1, 2.5, 3, 4]}]
    assert open_rows(str(write_jsonl(tmp_path / "b.jsonl", box)), None, TASKS["refcoco"], options())[0] == (
        "0", "aGFsbG8=", "a cat", "1,2.5,3,4",
    )  # fmt: skip


GOOD = GOOD_ROWS[0]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image": "b.png"}, "line 1: there is no image '.*b.png': correct the path"),
        ({"image": "https://x.org/b.png"}, "is a URL: download it"),
        ({"image": "."}, "not valid base64|Is a directory"),
        ({"image": "folder.png"}, r"the image .*folder\.png. cannot be read .Is a directory"),
        ({"image": 5}, "the image is of the type int"),
        ({"image": "\0.png"}, "cannot be read|there is no image"),
        ({"caption": None}, "there is no 'caption'"),
        ({"caption": {"a": 1}}, "'caption' is {'a': 1}: write a text"),
        ({"caption": [["a"]]}, "write a text"),
        ({"caption": float("nan")}, "there is no 'caption'"),
        ({"caption": float("inf")}, "'caption' is inf: write a text"),
        ({"image": float("nan")}, "there is no 'image'"),
        ({"image": "b.png "}, "there is no image"),
    ],
)
def test_bad_rows_name_file_line_and_reason(change, words, tmp_path):
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = write_jsonl(tmp_path / "a.jsonl", [{**GOOD, **change}, GOOD])
    assert validate(["caption", str(path), "--workers=0"]) == 1
    rows = open_rows(str(path), None, TASKS["caption"], options())
    with pytest.raises(BadRowError, match=rf"a\.jsonl.*({words})"):
        CaptionDataset(rows, Vocabulary.load(ROOT / "digits/BPE"), DataConfig(patch_image_size=16), "train")[0]
    assert rows[1][2] == "a cat"


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.csv", "id,file,caption\n1,a.png,x\n", "no column 'image'.*--columns=image=NAME.*'id', 'file', 'caption'"),
        ("a.csv", "id,image,caption\n", "has a header and no rows"),
        (
            "a.csv",
            "id,image,caption\r1,a.png,a cat\r",
            "has lines that end in CR alone, as on old Macs: save it with LF",
        ),
        ("a.csv", "id,image,image\n1,a,b\n", "two columns 'image'"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "\nid,image,caption\n1,a,b\n", r"a\.csv, line 1: the line is empty; write the names"),
        (
            "a.csv",
            "id,image,captión\n1,a,b\n".encode("latin-1"),
            r"a\.csv, line 1: the row is not UTF-8 at its byte 14",
        ),
        ("a.csv", "id,image,caption\n1,a,b\n".encode("utf-16"), r"a\.csv seems to be UTF-16 text, not UTF-8: save it"),
        ("a.csv", 'id,image,"caption\n1,a,b\n', r"a\.csv, line 1: the row is not CSV"),
        ("a.csv", 'id,image,the "caption\n1,a,5" b\n', r"a\.csv, line 1: a double quote inside an unquoted value"),
        ("a.jsonl", "[1]\n", "line 1: it is not a JSON object"),
        ("a.jsonl", '{"id": 1}\n', "no column 'image'"),
    ],
)
def test_bad_files(name, text, words, tmp_path):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words):
        open_rows(str(tmp_path / name), None, TASKS["caption"], options())


def test_parquet_files_without_rows(tmp_path, capfd):
    rows = captions(3)
    whole, empty = write_source("shards", tmp_path, rows), write_source("parquet", tmp_path, rows)
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(empty).slice(0, 0), empty)
    with pytest.raises(UserError, match=r"a\.parquet has no rows; check how it was made\.$"):
        open_captions("parquet", empty)
    empty.rename(whole / "train-00007.parquet")
    assert [open_captions("shards", whole)[n][0] for n in range(3)] == ["n0", "n1", "n2"]
    (whole / "train-00007.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as parquet .*: check how it was made"):
        open_captions("shards", whole)
    assert capfd.readouterr().err == ""


def test_samples_of_a_tar_that_differ(tmp_path):
    rows = [{"image": base64.b64encode(png(0)).decode(), "caption": caption} for caption in ("a cat", 7)]
    columns = "image=jpg,caption=json.caption"
    with pytest.raises(
        UserError, match=r"a\.tar cannot be read as webdataset .*: give a value of the \.json files the"
    ):
        open_rows(str(write_source("tar", tmp_path, rows)), None, TASKS["caption"], options(columns=columns))
    with pytest.raises(
        UserError, match=r"no column 'txt'.* \(the files of a sample must follow each other in the tar\)"
    ):
        path = write_source("tar", tmp_path, rows[:1])
        open_rows(str(path), None, TASKS["caption"], options(columns="image=jpg,caption=txt"))


@pytest.mark.parametrize("text", ['1,"a', '1,a"b"', "1", "1,2,3"])
def test_bad_lines_of_csv(text, tmp_path):
    (tmp_path / "a.csv").write_text(f"article,summary\nx,y\n{text}\n")
    table = CsvTable(tmp_path / "a.csv", ["article", "summary"])
    assert table[0] == ("x", "y")
    with pytest.raises(BadRowError, match=r"a\.csv, line 3: the row "):
        if table[1] == ("1", 'a"b"'):  # which Python takes
            raise BadRowError(table.path, "line 3", "the row is read")


def test_a_quote_inside_a_value_does_not_hide_rows(tmp_path):
    (tmp_path / "a.csv").write_text('article,summary\n"x\ny",1\na 5" nail,2\nb,3\na 6" nail,4\nc,5\n')
    rows = CsvTable(tmp_path / "a.csv", ["article", "summary"])
    assert rows[0] == ("x\ny", "1") and rows[2] == ("c", "5")
    with pytest.raises(
        BadRowError, match=r"a\.csv, line 4: a double quote inside an unquoted value would hide the next rows"
    ):
        rows[1]
    assert [pickle.loads(pickle.dumps(rows)).line(row) for row in (2, 0, 1)] == [7, 2, 4]


def test_what_spreadsheets_and_hands_write(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name, text in {
        "empty names": "image,caption,,\na.png,a cat,,\n",
        "blanks": "image, caption\n a.png , a cat\n",
        "tabs": "\ufeffimage\tcaption\na.png\ta cat\n",
        "quoted tabs": '"key"\t"image"\t"caption"\n1\ta.png\ta cat\n',
    }.items():
        path = tmp_path / f"{name}.csv"
        path.write_text(text, encoding="utf-8")
        row = open_rows(str(path), None, TASKS["caption"], options())[0]
        assert row[1] == (tmp_path / "a.png").read_bytes() and row[2].strip() == "a cat", name


def test_codes_are_a_list_of_numbers(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a cat", "codes": [3, 1, 2]}])
    assert open_rows(str(path), None, TASKS["image_gen"], options())[0] == ("0", "a cat", "3 1 2")


def test_names_of_columns_do_nothing_to_a_tsv_file(tmp_path, capsys):
    (tmp_path / "a.tsv").write_text("1\taGFsbG8=\ta cat\n")
    given = options(columns="caption=text")
    with pytest.raises(UserError, match=r"a\.tsv is a TSV file.*: pass --selected-cols, not --columns"):
        open_rows(str(tmp_path / "a.tsv"), None, TASKS["caption"], given)
    assert open_rows(str(tmp_path / "a.tsv"), "0,1,2", TASKS["caption"], given)[0][2] == "a cat"
    assert validate(["caption", str(tmp_path / "a.tsv"), "--columns=caption=text"]) == 2
    with pytest.raises(UserError, match="names two columns for 'caption'"):
        column_names("caption=a,caption=b", ("caption",))


def test_references_of_a_test_set_may_be_left_out(tmp_path):
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"id": 1, "image": "aGFsbG8="}]))
    assert open_rows(path, None, TASKS["caption"], options(), needs_references=False)[0] == ("1", "aGFsbG8=", "")
    with pytest.raises(UserError, match="no column 'caption'"):
        open_rows(path, None, TASKS["caption"], options())


@pytest.mark.parametrize("columns", ["image", "image=", "picture=a", "=a", "image=a,,", "image=a b,x"])
def test_malformed_columns(columns):
    with pytest.raises(UserError, match=r"--columns=.* is not NAME=COLUMN, where NAME is one of id, image, caption"):
        column_names(columns, ("id", "image", "caption"))
    assert column_names(" image = my file , id=x", ("id", "image")) == {"image": "my file", "id": "x"}


def test_columns_whose_names_hold_commas():
    names = ("id", "image", "caption")
    assert column_names('{"caption": "a, b=c", "id": " x"}', names) == {"caption": "a, b=c", "id": " x"}
    for columns, words in (
        ("caption=a, b", "' b' is not NAME=COLUMN.*holds a comma, write JSON"),
        ('{"caption": 1}', "'caption' is not one of"),
        ('{"title": "a"}', "'title' is not one of id, image, caption"),
        ('{"caption": ""}', "'caption' is not one of"),
        ('{"id": "a", "id": "b"}', "it has the key 'id' twice"),
        ('{"id"', "it is not a JSON object"),
    ):
        with pytest.raises(UserError, match=words):
            column_names(columns, names)


def test_paths_of_images_in_tsv_files(tmp_path, vocab):
    """--image-root makes them paths; base64 stays what it is."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(1))
    encoded = base64.b64encode(png(2)).decode()
    path = tmp_path / "x.tsv"
    path.write_text(f"1\tx\ta cat\ty\ta.png\n2\tx\ta dog\ty\t{encoded}\n3\tx\ta cow\ty\tb.png\n4\n")
    given = options(image_root=str(tmp_path / "photos"))
    rows = open_rows(str(path), "0,4,2", TASKS["caption"], given)
    assert rows[0] == ("1", png(1), "a cat") and rows[1] == ("2", encoded, "a dog") and len(rows) == 4
    assert pickle.loads(pickle.dumps(rows))[0] == rows[0]
    for number, words in ((2, "line 3: there is no image .*photos/b.png"), (3, "line 4: the row has 1 columns")):
        with pytest.raises(BadRowError, match=words):
            rows[number]
    assert open_rows(str(path), "0,4,2", TASKS["caption"], options())[0][1] == "a.png"
    assert open_rows(str(path), "0,4,2", TASKS["caption"], given, names=("caption",))[0] == ("a cat",)
    assert validate(["caption", str(path), f"--image-root={tmp_path}/photos", "--workers=0"]) == 1
    source = open_items(str(path), ("id", "image"), "0,4", image_root=str(tmp_path / "photos"))
    first, second, third, _ = source.read()
    assert [first.values["image"], second.values["image"]] == [png(1), png(2)] and "photos/b.png" in third.problem


def test_a_key_that_a_row_has_twice(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "image": "", "caption": "a"}\n{"id": 2, "caption": 1, "caption": 2}\n')
    rows = open_rows(str(tmp_path / "a.jsonl"), None, TASKS["caption"], options())
    assert rows[0][2] == "a"
    with pytest.raises(BadRowError, match="line 2: it has the key 'caption' twice; correct the row"):
        rows[1]


def test_tsv_files_that_are_called_csv_stay_tsv(tmp_path):
    (tmp_path / "a.csv").write_text("1\taGFsbG8=\ta cat, a dog\n")
    assert open_rows(str(tmp_path / "a.csv"), "0,1,2", TASKS["caption"], options())[0][2] == "a cat, a dog"


def test_an_index_of_lines_is_no_index_of_csv(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"article": "a\nb", "summary": "c"}])
    assert len(IndexedFile(path)) == 3 and len(CsvTable(path, ["article"])) == 1 and len(IndexedFile(path)) == 3
    assert JsonLines.quoted is False
