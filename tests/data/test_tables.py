"""CSV and JSON lines: the same rows as TSV files, images from paths, and mistakes named in a sentence."""

import csv
import json
import pickle
import random
from types import SimpleNamespace

import pytest
from PIL import Image

from data import row_index
from data.images import decode_base64
from data.row_index import IndexedFile
from data.tables import CsvTable, JsonLines, column_names, open_rows
from data.tasks import TASKS
from data.tsv import TsvFile
from data.validate import main as validate
from tests.programs import ROOT
from utils.errors import BadRowError, UserError

TSV = ROOT / "tests/golden/tsv"
FILES = {
    "caption": "caption/caption_train.tsv", "vqa_gen": "vqa_gen/vqa_train.tsv", "refcoco": "refcoco/refcoco_train.tsv",
    "snli_ve": "snli_ve/snli_ve_train.tsv", "image_classify": "image_classify/imagenet_1k_train.tsv",
    "image_gen": "image_gen/coco_vqgan_train.tsv", "gigaword": "gigaword/train.tsv",
    **{name: f"{name}/{name}_train.tsv" for name in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")},
}  # fmt: skip


def options(**given):
    return SimpleNamespace(**{"columns": None, "image_root": None, "add_object": False, "add_caption": False, **given})


def write_csv(path, rows, **style):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), **style)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("write, name", [(write_csv, "a.csv"), (write_jsonl, "a.jsonl")])
@pytest.mark.parametrize("task", TASKS)
def test_rows_are_those_of_the_released_files(task, write, name, tmp_path):
    row = TASKS[task]
    tsv = TsvFile(TSV / FILES[task], row.selected_cols)
    records = [dict(zip(row.names, tsv[i], strict=True)) for i in range(len(tsv))]
    in_base64 = open_rows(str(write(tmp_path / name, records)), "7,8", row, options())
    assert [in_base64[i] for i in range(len(in_base64))] == [tsv[i] for i in range(len(tsv))]
    if "image" in row.names:
        (tmp_path / "images").mkdir()
        for number, record in enumerate(records):
            record["file"] = f"{number} é" if number == 0 else f"{number}.jpg"
            image = decode_base64(record.pop("image"))
            (tmp_path / "images" / record["file"]).write_bytes(image)
        by_path = open_rows(
            str(write(tmp_path / name, records)),
            None,
            row,
            options(columns="image=file", image_root=str(tmp_path / "images")),
        )
        place = row.names.index("image")
        for i in range(len(tsv)):
            expected = list(tsv[i])
            expected[place] = decode_base64(expected[place])
            assert list(by_path[i]) == expected


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


GOOD = {"id": "1", "image": "a.png", "caption": "a cat"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image": "b.png"}, "line 1: there is no image '.*b.png': correct the path"),
        ({"image": "https://x.org/b.png"}, "is on the network: fetch it"),
        ({"image": "."}, "there is no image|not valid base64"),
        ({"image": "folder.png"}, "there is no image"),
        ({"image": 5}, "the image is of the type int"),
        ({"image": "\0.png"}, "cannot be read|there is no image"),
        ({"caption": None}, "there is no 'caption'"),
        ({"caption": {"a": 1}}, "'caption' is {'a': 1}: write a text"),
        ({"caption": [["a"]]}, "write a text"),
    ],
)
def test_bad_rows_name_file_line_and_reason(change, words, tmp_path):
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = write_jsonl(tmp_path / "a.jsonl", [{**GOOD, **change}, GOOD])
    assert validate(["caption", str(path), "--workers=0"]) == 1
    rows = open_rows(str(path), None, TASKS["caption"], options())
    from data.base import DataConfig
    from data.caption import CaptionDataset
    from data.text import Vocabulary

    with pytest.raises(BadRowError, match=rf"a\.jsonl.*({words})"):
        CaptionDataset(rows, Vocabulary.load(ROOT / "digits/BPE"), DataConfig(patch_image_size=16), "train")[0]
    assert rows[1][2] == "a cat"


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.csv", "id,file,caption\n1,a.png,x\n", "no column 'image'.*--columns=image=NAME.*'id', 'file', 'caption'"),
        ("a.csv", "id,image,caption\n", "has a header and no rows"),
        ("a.csv", "id,image,image\n1,a,b\n", "two columns 'image'"),
        ("a.csv", "", "has no rows"),
        ("a.jsonl", "[1]\n", "line 1: it is not a JSON object"),
        ("a.jsonl", '{"id": 1}\n', "no column 'image'"),
    ],
)
def test_bad_files(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        open_rows(str(tmp_path / name), None, TASKS["caption"], options())


@pytest.mark.parametrize("text", ['1,"a', '1,a"b"', "1", "1,2,3"])
def test_bad_lines_of_csv(text, tmp_path):
    (tmp_path / "a.csv").write_text(f"article,summary\nx,y\n{text}\n")
    table = CsvTable(tmp_path / "a.csv", ["article", "summary"])
    assert table[0] == ("x", "y")
    with pytest.raises(BadRowError, match=r"a\.csv, line 3: the row "):
        if table[1] == ("1", 'a"b"'):  # which Python takes
            raise BadRowError(table.path, 3, "the row is read")


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


def test_tsv_files_that_are_called_csv_stay_tsv(tmp_path):
    (tmp_path / "a.csv").write_text("1\taGFsbG8=\ta cat, a dog\n")
    assert open_rows(str(tmp_path / "a.csv"), "0,1,2", TASKS["caption"], options())[0][2] == "a cat, a dog"


def test_an_index_of_lines_is_no_index_of_csv(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"article": "a\nb", "summary": "c"}])
    assert len(IndexedFile(path)) == 3 and len(CsvTable(path, ["article"])) == 1 and len(IndexedFile(path)) == 3
    assert JsonLines.quoted is False
