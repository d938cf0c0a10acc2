"""The report of `data.validate`: what it counts, its page and its JSON, the same with any number of processes."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.validate import main
from tests.programs import ROOT
from tests.sources import SOURCES, columns_of, write_source

WORDS = " ".join(f"w{number}" for number in range(40))
MARKUP = '</dd><script>alert("1")</script>\u202e & <b>'


def png(size: tuple[int, int], mode: str = "RGB", color: int = 7) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """Rows of refcoco: good ones with two images, and one of each fault."""
    (tmp_path / "a.png").write_bytes(png((96, 48)))
    (tmp_path / "b.png").write_bytes(png((48, 96), "L"))
    rows = [
        ("1", "a.png", MARKUP, [0, 0, 48, 24]),
        ("2", "b.png", WORDS, [0, 0, 48, 96]),
        ("1", "a.png", "the cup", [1, 2, 30, 20]),
        ("x", "a.png", "the cup", [1, 2, 130, 20]),
        ("x", "c.png", "the cup", [1, 2, 30, 20]),
        ("y", "b.png", " ", [1, 2, 30, 20]),
        ("1", "b.png", "the cup", [1, 2, 30, 20]),
    ]
    records = [dict(zip(("id", "image", "text", "box"), row, strict=True)) for row in rows]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def report(capsys: pytest.CaptureFixture[str], *argv: str, code: int) -> tuple[dict[str, Any], str]:
    """The JSON and what is printed."""
    path = Path(argv[1]).with_suffix(".report.json")
    assert main([*argv, f"--json={path}", *([] if "--workers=2" in argv else ["--workers=0"])]) == code
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name)), capsys.readouterr().out


def test_all_is_counted(boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "val.tsv").write_text(
        f"9\t{base64.b64encode(png((48, 96), 'L')).decode()}\ta cup\t0,0,9,9\n8\t?\tx\t0\n"
    )
    argv = ["refcoco", str(boxes), "--max-src-length=30", f"--against={tmp_path}/val.tsv", "--selected-cols=0,1,2,3"]
    found, said = report(capsys, *argv, code=1)
    assert (found["rows"], found["good"], found["bad"]["rows"]) == (7, 4, 3)
    assert len(found["bad"]["first"]) == 3 and f"{boxes}, line 4: the box '1,2,130,20'" in found["bad"]["first"][0]
    assert [re.sub(r"\W+", " ", kind)[:18] for kind in found["bad"]["kinds"]] == [
        "the box is outside", "there is no image ", "the phrase has no "
    ]  # fmt: skip
    assert found["images"] == {
        "rows": 5, "different": 2, "width": {"least": 48, "median": 96, "most": 96},
        "height": {"least": 48, "median": 48, "most": 96}, "modes": {"RGB": 3, "L": 2}, "stored_turned": 0,
    }  # fmt: skip
    source = found["texts"]["source"]
    assert source["limit"] == 30 and source["cut_rows"] == 1 and source["tokens"]["most"] > 80
    assert found["texts"]["target"] == {
        "tokens": {"least": 4, "median": 4, "most": 4}, "limit": 30, "cut_rows": 0
    }  # fmt: skip
    assert found["ids"] == {"repeated": 1, "first_lines": {"1": [1, 3, 7]}, "not_numbers": 0}
    assert found["against"] == {"file": f"{tmp_path}/val.tsv", "shared_images": 1, "first_lines": [[2, 1]]}
    for words in (
        "Images: 2 different in 5 rows; width 48 to 96 (median 96), height 48 to 96 (median 48); RGB (3), L (2).",
        "rows that --max-src-length=30 cuts: 1.", "Repeated ids: 1, such as '1' in lines 1, 3 and 7.",
        f"Images that {tmp_path}/val.tsv has too: 1, the first in line 2, there in line 1.", "4 of 7 rows are good.",
    ):  # fmt: skip
        assert words in said
    assert report(capsys, *argv, "--workers=2", code=1) == (found, said)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_has_the_same_report(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))
    rows = [{"id": "a", "image": png((40, 20 + n // 2)), "caption": " " if n == 2 else WORDS} for n in range(4)]
    for row in rows:
        row["image"] = base64.b64encode(row["image"]).decode()
    argv = ["caption", str(write_source(kind, tmp_path, rows)), "--selected-cols=0,1,2", f"--against={tmp_path}/x.tsv"]
    (tmp_path / "x.tsv").write_text(f"z\t{rows[2]['image']}\ta cup\n")
    columns = columns_of(kind, ("id", "image", "caption"))
    found, said = report(capsys, *argv, *([f"--columns={columns}"] if columns else []), code=1)
    assert found["images"]["different"] == 2 and found["images"]["height"] == {"least": 20, "median": 20, "most": 21}
    assert found["texts"]["target"]["cut_rows"] == 3 and found["bad"]["kinds"] == {"the caption has no words": 1}
    assert found["ids"]["repeated"] == 1 and found["against"]["shared_images"] == 1
    places = {
        "csv": "line 4",
        "tsv": "line 3",
        "jsonl": "line 3",
        "tar": "row 3 (00002.jpg)",
        "folder": "metadata.jsonl, line 3 (",
    }
    assert f"{found['file']}, {places.get(kind, 'row 3')}" in said and ": the caption has no words" in said


CASES = {
    "caption": ([f"1\t{{}}\t{WORDS}", "2\t{}\ta cup", f"3\t{{}}\t{WORDS}&&{WORDS}"], "0,1,2", (0, 1)),
    "vqa_gen": ([f"1\t{{}}\t{WORDS}\t1.0|!+a {WORDS}\t", "2\t{}\twhat?\t1.0|!+cup\t"], "0,1,2,3,4", (1, 1)),
    "snli_ve": ([f"1\t{{}}\t{WORDS}\t\tneutral", "2\t{}\ta cup\t\tneutral"], "0,1,2,3,4", (1, 0)),
    "gigaword": ([f"{WORDS}\t{WORDS}", "a cup\ta cup"], "0,1", (1, 1)),
    "mrpc": ([f"{WORDS}\ta cup\t1", "a cup\ta cup\t0"], "0,1,2", (1, 0)),
    "image_gen": ([f"1\t{WORDS}\t{' 5' * 1024}", f"2\ta cup\t{'5 ' * 1024}"], "0,1,2", (1, 0)),
    "pretrain": ([f"1\t{{}}\t{WORDS}\t\t\t\tcoco\tcaption"], "0,1,2,3,4,5,6,7", (0, 1)),
}


@pytest.mark.parametrize("task", CASES)
def test_cut_texts_of_every_kind(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, columns, cut = CASES[task]
    image = base64.b64encode(png((40, 40))).decode()
    (tmp_path / "rows.tsv").write_text("".join(row.format(image) + "\n" for row in rows))
    argv = [task, f"{tmp_path}/rows.tsv", f"--selected-cols={columns}", "--max-src-length=25", "--max-tgt-length=25"]
    found, _ = report(capsys, *argv, code=0)
    assert tuple(found["texts"][side]["cut_rows"] for side in ("source", "target")) == cut
    assert (found["texts"]["target"]["tokens"]["most"] is None) == (task == "image_gen")
    found, _ = report(capsys, *argv[:3], "--max-src-length=400", "--max-tgt-length=400", code=0)
    assert not any(text["cut_rows"] for text in found["texts"].values())


@pytest.mark.parametrize("task, text, repeated", [("caption", "caption", {"7": [2, 3]}), ("refcoco", "text", {})])
def test_ids_that_are_one_number_on_a_leaderboard_are_repeated(
    task: str, text: str, repeated: dict[str, list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png((9, 9)))
    rows = "".join(f'{row_id},a.png,a cup,"0,0,5,5"\n' for row_id in ("007", "7", "8"))
    (tmp_path / "a.csv").write_text(f"id,image,{text},box\n{rows}")
    found, said = report(capsys, task, str(tmp_path / "a.csv"), code=0)
    assert found["ids"]["first_lines"] == repeated and ("Repeated ids: 1, such as '7'" in said) == bool(repeated)


def test_answers_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = base64.b64encode(png((40, 40))).decode()
    answers = "yes", "no", "yes", "perhaps"
    (tmp_path / "rows.tsv").write_text("".join(f"{n}\t{image}\twhat?\t1|!+{a}\t\n" for n, a in enumerate(answers)))
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    argv = ["vqa_gen", f"{tmp_path}/rows.tsv", "--selected-cols=0,1,2,3,4", f"--candidates={tmp_path}/answers.txt"]
    found, said = report(capsys, *argv, code=1)
    assert found["answers"] == {"counts": {"yes": 2, "no": 1, "perhaps": 1}, "outside": {"perhaps": 1}}
    assert "Answers: 3 different: 'yes' (2), 'no' (1), 'perhaps' (1)." in said and found["good"] == 3
    assert "Answers outside the answer set: 'perhaps' (1)." in said


def test_answers_that_the_vocabulary_cannot_write_are_refused_as_training_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = base64.b64encode(png((40, 40))).decode()
    (tmp_path / "rows.tsv").write_text(f"1\t{image}\twhat?\t1|!+black\t\n")
    (tmp_path / "answers.txt").write_text("red\nblack\n")
    argv = ["vqa_gen", f"{tmp_path}/rows.tsv", "--selected-cols=0,1,2,3,4", f"--bpe-dir={ROOT}/digits/BPE"]
    assert main([*argv, f"--candidates={tmp_path}/answers.txt"]) == 2
    assert "Answer 1, 'black', holds a token outside the vocabulary" in capsys.readouterr().err


def test_what_joins_captions_is_no_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = base64.b64encode(png((40, 40))).decode()
    (tmp_path / "rows.tsv").write_text(f"1\t{image}\ta red one && a blue xyzzy\n")
    argv = ["caption", f"{tmp_path}/rows.tsv", "--selected-cols=0,1,2", f"--bpe-dir={ROOT}/digits/BPE"]
    found, _ = report(capsys, *argv, code=0)
    assert found["unknown_words"] == {"rows": 1, "words": {"xyzzy": 1}}


def test_a_file_of_bad_rows_only_has_no_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.tsv").write_text("1\t?\ta cup\n" * 30)
    page = tmp_path / "page.html"
    argv = ["caption", f"{tmp_path}/rows.tsv", "--selected-cols=0,1,2", f"--html={page}"]
    found, said = report(capsys, *argv, code=1)
    assert found["images"]["width"] == {"least": None, "median": None, "most": None} and found["good"] == 0
    assert len(found["bad"]["first"]) == said.count("rows.tsv, line") == 20 and "Images" not in said
    assert page.read_text().count('class="row bad"') == 24


class Page(HTMLParser):
    """Tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_shows_what_the_model_sees(boxes: Path, tmp_path: Path) -> None:
    assert main(["refcoco", str(boxes), "--workers=0", f"--html={tmp_path}/new/page.html"]) == 1
    page = Page((tmp_path / "new/page.html").read_text(encoding="utf-8"))
    assert not page.named("script") and not page.named("b") and not page.named("link")
    assert '<script>alert("1")< script>' in page.text and "4 of 7 rows are good." in page.text  # / becomes a blank
    images, shapes = page.named("image"), page.named("rect")
    assert len(images) == len(shapes) == 4 and page.text.count("which region does the text") == 4
    head, _, data = str(images[0]["href"]).partition(",")
    assert head == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (480, 480)
    sides = [round(float(str(shapes[0][name]))) for name in ("x", "y", "width", "height")]
    assert sides == [0, 0, 240, 240]  # half of each side, of 480 pixels
    bad = [attributes for attributes in page.named("div") if attributes.get("class") == "row bad"]
    assert len(bad) == 3 and "there is no image" in page.text


@pytest.mark.parametrize(
    "words, said",
    [
        (["--html=rows.jsonl/page.html"], "--html="),
        (["--json=rows.jsonl/report.json"], "--json="),
        (["--json="], "--json"),
        (["--json=./rows.jsonl"], "--json=rows.jsonl is a data file: choose another name."),
        (["--against=none.jsonl"], "none.jsonl"),
        (["--max-src-length=0"], "--max-src-length"),
    ],
)
def test_bad_flags(
    words: list[str], said: str, boxes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(boxes.parent)
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(main(["refcoco", boxes.name, "--workers=0", *words]))
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_rows_without_images_share_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.tsv").write_text("a cup\ta cup\n")
    assert main(["gigaword", f"{tmp_path}/rows.tsv", f"--against={tmp_path}/rows.tsv", "--workers=0"]) == 2
    assert "these rows have none: leave it out" in capsys.readouterr().err
