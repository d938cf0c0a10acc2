"""predict.py: every subcommand on real files, resuming, bad items, exit codes."""

import csv
import itertools
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet
import pytest
from PIL import Image

import predict
from data.record_table import write_table
from models.predictor import OFAPredictor
from models.vqgan import VQGAN, VQGANConfig
from utils.record_parts import RecordParts

ROOT = Path(__file__).parents[1]
TSV = ROOT / "tests" / "golden" / "tsv"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, save_small_network):
    """A small random model that knows the answers of the golden files."""
    answers = f"{TSV}/vqa_gen/trainval_ans2label.pkl"
    return save_small_network(tmp_path_factory.mktemp("predict") / "small.pt", _name="vqa_gen", ans2label_file=answers)


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return OFAPredictor.load(checkpoint, "cpu", ans2label_file=f"{TSV}/image_classify/class2label.pkl")


@pytest.fixture
def start(checkpoint, monkeypatch, tmp_path):
    """Runs a command line; exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda output, *argv: predict.main(
        [*map(str, argv), "--checkpoint", str(checkpoint), "--device=cpu", "--output", output]
    )


@pytest.fixture
def run(start):
    """Runs a command line; exit code and records."""

    def records(*argv, output="out.jsonl"):
        return start(output, *argv), [json.loads(line) for line in Path(output).read_text().splitlines()]

    return records


def golden(name, tmp_path):
    return shutil.copy(TSV / name, tmp_path / Path(name).name)


@pytest.fixture
def album(tmp_path):
    """Two images, and a file that is none."""
    folder = tmp_path / "album"
    folder.mkdir()
    Image.new("RGB", (40, 20), (200, 0, 0)).save(folder / "b.png")
    Image.new("RGB", (20, 40), (0, 200, 0)).save(folder / "a.jpg")
    (folder / "notes.txt").write_text("none of it")
    return folder


QUICK = ["--decoding", '{"beam": 1, "max_len_b": 3}']
COMMANDS = {
    "caption": (["caption/caption_val.tsv", *QUICK], {"caption", "score"}),
    "answer": (["vqa_gen/vqa_val.tsv"], {"answer", "score"}),
    "ground": (["refcoco/refcoco_val.tsv", "--n-best=2"], {"boxes", "scores"}),
    "entail": (["snli_ve/snli_ve_dev.tsv"], {"entailment", "score"}),
    "classify": (
        ["image_classify/imagenet_1k_val.tsv", f"--candidates={TSV}/image_classify/answers.json", "--top-k=2"],
        {"labels", "scores"},
    ),
    "summarise": (["gigaword/dev.tsv", *QUICK], {"summary", "score"}),
    "generate": (["refcoco/refcoco_val.tsv", "--selected-cols=0,4,2", *QUICK], {"text", "score"}),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_row_of_a_released_file_has_a_record(command, run, tmp_path):
    (file, *flags), fields = COMMANDS[command]
    path = golden(file, tmp_path)
    rows = Path(path).read_text(encoding="utf-8").splitlines()
    code, records = run(command, path, *flags)
    assert code == 0 and len(records) == len(rows)
    assert all(record.keys() == {"id", *fields} for record in records)
    numbered = command in ("classify", "summarise")  # whose files have no ids
    assert [r["id"] for r in records] == [n if numbered else row.split("\t")[0] for n, row in enumerate(rows)]


def test_images_are_drawn(checkpoint, run, tmp_path, capsys):
    sizes = dict(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32, z_channels=8)
    VQGAN(VQGANConfig(**sizes, embed_dim=8)).save(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    (tmp_path / "texts.txt").write_text("a cat\n\na dog\n")
    code, records = run("draw", "texts.txt", "a bird", "--n=2", "--vqgan", "last.ckpt", "model.yaml", "--folder=made")
    assert code == 0 and [record["id"] for record in records] == [0, 1, 2]
    assert records[2]["pictures"] == ["made/000002_0.png", "made/000002_1.png"] and len(records[2]["scores"]) == 2
    assert Image.open("made/000002_1.png").size == (32, 32)
    (tmp_path / "some.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": " "}\n')
    code, records = run("draw", "some.jsonl", "--vqgan", "last.ckpt", "model.yaml", "--folder=made", output="2.jsonl")
    assert code == 1 and [record["id"] for record in records] == [0]
    assert records[0]["pictures"] == ["made/000000_0_2.png"] and Path("made/000000_0.png").exists()
    assert "some.jsonl, object 2: the text has no words; skipped." in capsys.readouterr().err


def test_compile_reaches_the_network(run, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("models.predictor.predictor.compile_layers", seen.append)
    data = golden("caption/caption_val.tsv", tmp_path)
    plain = run("caption", data, *QUICK)
    assert not seen
    assert run("caption", data, *QUICK, "--compile", output="compiled.jsonl") == plain and len(seen) == 1


def test_a_stopped_run_goes_on(run, album, tmp_path):
    path = golden("vqa_gen/vqa_val.tsv", tmp_path)
    _, whole = run("answer", path)
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    kept = b"".join(lines[:2]).replace(b'"answer": "', b'"answer": "kept ')
    Path("out.jsonl").write_bytes(kept + lines[2][:-4])  # torn in its last line
    code, records = run("answer", path)
    assert code == 0 and [record["answer"].startswith("kept ") for record in records[:3]] == [True, True, False]
    assert [{**record, "answer": record["answer"].removeprefix("kept ")} for record in records] == whole


def test_records_of_another_run_are_not_taken_for_those_of_this_one(start, album, checkpoint, capsys):
    rows = [{"id": n, "image": "album/b.png", "question": "what?"} for n in range(3)]
    Path("one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("two.jsonl").write_text("".join(json.dumps({**row, "id": row["id"] + 3}) + "\n" for row in rows))
    answers = shutil.copy(f"{TSV}/vqa_gen/trainval_ans2label.pkl", "answers.pkl")
    argv = ["answer", "one.jsonl", "album/a.jpg", "--question=who?", "--decoding", '{"beam": 2, "lenpen": 1.0}']
    assert start("out.jsonl", *argv, f"--set=ans2label_file={answers}") == 0
    found = Path("out.jsonl").read_bytes()
    Path("answers.pkl").write_bytes(Path("answers.pkl").read_bytes().replace(b"yes", b"yea"))
    others = {
        "which had --question 'who?'; this one has --question 'where?'": (*argv, "--question=where?"),
        "which had no --candidates; this one has --candidates 'answers.pkl'": (*argv, "--candidates=answers.pkl"),
        "which had no --free; this one has --free": (*argv, "--free"),
        "which had --set ans2label_file 'answers.pkl'; this one has --set ans2label_file 'answers.pkl'": (
            *argv, f"--set=ans2label_file={answers}",
        ),
    }  # fmt: skip
    for words, other in others.items():
        assert start("out.jsonl", *other) == 2 and Path("out.jsonl").read_bytes() == found
        said = capsys.readouterr().err
        assert words in said and "name another file, or remove out.jsonl.run beside it to keep them." in said
    Path("answers.pkl").unlink()
    shutil.copy(f"{TSV}/vqa_gen/trainval_ans2label.pkl", "answers.pkl")
    shutil.copy(checkpoint, "moved.pt")
    argv[-1] = '{"lenpen": 1.0, "beam": 2}'
    more = [
        "answer",
        "one.jsonl",
        "album/a.jpg",
        "two.jsonl",
        "album/b.png",
        *argv[3:],
        f"--set=ans2label_file={answers}",
        "--batch-size=2",
        "--columns=id=id",
    ]
    more += ["--checkpoint=moved.pt", "--device=cpu", "--output=out.jsonl", f"--image-root={Path.cwd()}/"]
    assert predict.main(more) == 0
    assert "4 written, 0 skipped, 4 there before." in capsys.readouterr().err
    content = bytearray(Path("moved.pt").read_bytes())
    content[len(content) // 2] ^= 1
    Path("moved.pt").write_bytes(content)
    assert predict.main(more) == 2
    assert "which had --checkpoint 'moved.pt'; this one has --checkpoint 'moved.pt'" in capsys.readouterr().err
    Path("out.jsonl.run").write_text("{")
    assert start("out.jsonl", *argv) == 2 and "out.jsonl.run cannot be read" in capsys.readouterr().err
    Path("out.jsonl.run").unlink()  # as of a file that was written before there were such
    assert start("out.jsonl", *argv) == 0 and "0 written" in capsys.readouterr().err
    assert start("out.csv", *argv) == 0 and start("out.csv", *argv, "--question=where?") == 2
    assert "out.csv.jsonl holds records of another run, which had --question 'who?'" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("change", ["image before", "row before", "question", "image", "folder", "prompt alone"])
def test_a_record_of_another_item_is_not_taken_for_this_ones(change, processes, start, album, monkeypatch, capfd):
    """Ids are what the user says, or numbers, which change with what stands before."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [{"image": f"album/{name}", "prompt": "what?", "id": None} for name in ("a.jpg", "b.png")]

    def write(rows):
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*words, processes=1):
        return start("out.jsonl", "generate", *words, *QUICK, "--prompt=what?", f"--processes={processes}")

    if change == "question":
        rows = [{**row, "id": number} for number, row in enumerate(rows)]
    write(rows)
    words = [] if change == "prompt alone" else ["rows.jsonl"]
    if change == "folder":
        monkeypatch.chdir(album)
        words = ["a.jpg"]
    assert run(*words) == 0
    output = Path("out.jsonl").resolve()
    found, again = output.read_bytes(), ["rows.jsonl"]
    if change == "image before":
        again = ["album/a.jpg", "rows.jsonl"]
    elif change == "row before":
        write([{"image": "album/b.png", "prompt": "where?"}, *rows])
    elif change == "question":
        write([{**rows[0], "prompt": "where?"}, rows[1]])
    elif change == "image":
        write([{**row, "image": "album/b.png"} for row in rows])
    elif change == "folder":
        (album / "more").mkdir()
        shutil.copy(album / "b.png", album / "more/a.jpg")
        for name in ("out.jsonl", "out.jsonl.run"):
            shutil.copy(name, f"more/{name}")
        monkeypatch.chdir(album / "more")
        again = ["a.jpg"]
    assert run(*again, processes=processes) == 2
    assert "has another image or text than the item it was made of: name another file, or" in capfd.readouterr().err
    assert output.read_bytes() == found


def test_an_option_of_the_checkpoint_that_is_added_or_left_out_is_another_run(start, album, capsys):
    argv, more = ["caption", "album/a.jpg", *QUICK], ["--set=patch_image_size=24"]
    for name, first, second, words in (
        ("a.jsonl", argv, [*argv, *more], "which had no --set; this one has --set 'set patch_image_size'"),
        ("b.jsonl", [*argv, *more], argv, "which had --set 'set patch_image_size'; this one has no --set"),
    ):
        assert start(name, *first) == 0 and start(name, *second) == 2
        assert words in capsys.readouterr().err


def test_parts_are_of_these_items_and_files(start, album, monkeypatch, capsys):
    """What a killed run of several processes has left: content counts, and paths do not."""
    from models.predictor import stream

    for number in range(6):
        Image.new("RGB", (20, 20), (number * 40, 0, 0)).save(album / f"{number}.png")
    Path("names.txt").write_text("red\nblue\n")
    argv = ["classify", "album", "--candidates=names.txt", "--batch-size=2"]
    finish, calls = stream.Stream._finish, itertools.count()

    def dying(self, chunk, ledger):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return finish(self, chunk, ledger)

    def stopped():
        shutil.rmtree("out.jsonl.parts", ignore_errors=True)
        Path("out.jsonl").unlink(missing_ok=True)
        Path("out.jsonl.parts").mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(stream.Stream, "_finish", dying)
            assert start("out.jsonl", *argv) == 130
        assert Path("out.jsonl.parts/000001.jsonl").read_bytes().count(b"\n") == 1 + 4

    stopped()
    Path("names.txt").write_text("red\ngreen\n")
    assert start("out.jsonl", *argv) == 2 and "another checkpoint or other options" in capsys.readouterr().err
    Path("names.txt").write_text("red\nblue\n")
    Image.new("RGB", (20, 20)).save(album / "00.png")  # before the others
    assert start("out.jsonl", *argv) == 2
    assert "out.jsonl.parts holds a record of another image or text than album/" in capsys.readouterr().err
    (album / "00.png").unlink()
    os.utime("names.txt", (1, 1))
    argv = ["classify", "album", str(album / "5.png"), f"--candidates={Path.cwd()}/names.txt", "--batch-size=3"]
    assert start("out.jsonl", *argv) == 0 and "5 written, 0 skipped, 4 there before." in capsys.readouterr().err


@pytest.mark.parametrize("known", range(7))
def test_records_without_a_digest_are_believed(known, run, start, album):
    """As after a kill between the two writes, or of a file that is older; also where ids repeat."""
    rows = [{"id": number % 3, "image": f"album/{('a.jpg', 'b.png')[number % 2]}"} for number in range(6)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["caption", "rows.jsonl", *QUICK, "--batch-size=1"]
    _, expected = run(*argv)
    origins = Path("out.jsonl.run").read_bytes().splitlines(keepends=True)
    assert len(origins) == 1 + 6
    torn = b"".join(origins[: known + 1]) + (origins[known + 1][:-3] if known < 6 else b"")
    for kept in (6, 4):
        Path("out.jsonl").write_text("".join(json.dumps(record) + "\n" for record in expected[:kept]))
        Path("out.jsonl.run").write_bytes(torn)
        assert run(*argv) == (0, expected)
    assert start("out.jsonl", *argv) == 0


def test_names_of_files_may_be_no_utf_8(run, album):
    shutil.copy(album / "b.png", os.fsencode(album) + b"/\xff.png")
    assert run("caption", "album", *QUICK)[0] == 0 == run("caption", "album", *QUICK)[0]


def test_several_processes_do_not_drop_records_of_other_inputs(start, album, capsys):
    assert start("out.jsonl", "caption", "album", *QUICK) == 0
    found = Path("out.jsonl").read_bytes()
    parts = Path("out.jsonl.parts")
    parts.mkdir()  # as several processes begin
    assert start("out.jsonl", "caption", "album/a.jpg", *QUICK) == 2 and Path("out.jsonl").read_bytes() == found
    assert "out.jsonl holds 1 records of items that are not among the inputs, which several" in capsys.readouterr().err
    shutil.rmtree(parts)
    parts.mkdir()
    Image.new("RGB", (40, 20)).save(album / "c.png")
    assert start("out.jsonl", "caption", "album", *QUICK) == 0 and Path("out.jsonl").read_bytes().startswith(found)
    assert len(Path("out.jsonl.run").read_text().splitlines()) == 1 + 3
    assert start("out.jsonl", "caption", "album", *QUICK) == 0
    assert "0 written, 0 skipped, 3 there before." in capsys.readouterr().err


def read_table(name):
    if name.endswith("parquet"):
        return pyarrow.parquet.read_table(name).to_pylist()
    with open(name, newline="") as file:
        return [{k: json.loads(v) if v[:1] == "[" else v for k, v in row.items()} for row in csv.DictReader(file)]


def test_records_as_a_table_are_those_of_json_lines(run, start, tmp_path, monkeypatch, capsys):
    argv = ["ground", golden("refcoco/refcoco_val.tsv", tmp_path), "--n-best=2"]
    _, expected = run(*argv)
    with monkeypatch.context() as patch:
        patch.setattr("data.record_table.write_table", Mock(side_effect=KeyboardInterrupt))
        assert start("out.csv", *argv) == 130 and not Path("out.csv").exists()
    kept = Path("out.csv.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.csv.jsonl").write_bytes(b"".join(kept[:-1]) + kept[-1][:9])
    assert start("out.csv", *argv) == 0 and read_table("out.csv") == expected
    assert f"1 written, 0 skipped, {len(expected) - 1} there before." in capsys.readouterr().err
    write_table(Path("a.parquet"), expected)
    assert read_table("a.parquet") == expected
    large = [{**record, "id": 2**70 + number} for number, record in enumerate(expected)]
    write_table(Path("a.parquet"), large)
    assert [record["id"] for record in read_table("a.parquet")] == [str(record["id"]) for record in large]
    Path("out.csv.jsonl").unlink()
    before = Path("out.csv").read_bytes()
    assert start("out.csv", *argv) == 2 and Path("out.csv").read_bytes() == before
    assert "out.csv is there without out.csv.jsonl, which a run resumes" in capsys.readouterr().err


def test_json_files_of_vqa_keep_their_ids_also_among_others_in_a_table(start, album):
    questions = [{"question_id": 42001, "image_id": 42, "question": "what?"}]
    Image.new("RGB", (20, 40)).save(album / "COCO_val2014_000000000042.jpg")
    Path("questions.json").write_text(json.dumps({"questions": questions}))
    Path("some.jsonl").write_text('{"image": "a.jpg", "question": "who?", "key": "x"}\n')
    flags = ["--image-root=album", "--columns=id=key"]
    assert start("out.parquet", "answer", "questions.json", *flags) == 0
    assert [record["id"] for record in read_table("out.parquet")] == [42001]
    assert start("2.parquet", "answer", "questions.json", "some.jsonl", *flags) == 0
    assert [record["id"] for record in read_table("2.parquet")] == ["42001", "x"]


@pytest.mark.parametrize("content", [b"buy milk", b'{"id": 0, "caption": "half'])
@pytest.mark.parametrize("wrong", ["--checkpoint=gone.pt", "--set=bpe_dir=gone", '--decoding={"beams": 3}'])
def test_the_output_is_untouched_while_something_else_is_wrong(content, wrong, checkpoint, album, monkeypatch, capsys):
    monkeypatch.chdir(album.parent)
    Path("out.jsonl").write_bytes(content)
    argv = ["caption", "album/b.png", f"--checkpoint={checkpoint}", "--device=cpu", "--output=out.jsonl", wrong]
    assert predict.main(argv) == 2 and Path("out.jsonl").read_bytes() == content
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_bad_items_are_reported_and_skipped(run, album, capsys):
    (album / "c.png").write_bytes(b"no image")
    code, records = run("ground", album, album / "gone.png", "--phrase=the car")
    said = capsys.readouterr().err
    assert code == 1 and [record["id"] for record in records] == [str(album / "a.jpg"), str(album / "b.png")]
    assert f"The image {album}/c.png cannot be used: the image cannot be decoded" in said
    assert f"The image {album}/gone.png cannot be read (No such file or directory)" in said
    assert "2 written, 2 skipped, 0 there before." in said and "Traceback" not in said


def test_rows_and_objects_that_are_bad(run, album, tmp_path, capsys):
    row = (TSV / "vqa_gen/vqa_val.tsv").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "rows.tsv").write_text(f"{row}\n8\tshort\n9\tx\tq\ta\to\t???\n", encoding="utf-8")
    objects = [
        '{"image": "album/a.jpg", "question": "what?", "id": "x"}', '{"image": "album/a.jpg"}', "[]", "{",
        '{"image": 3, "question": "what?"}', '{"image": "album/a.jpg", "question": "what?", "id": []}',
    ]  # fmt: skip
    (tmp_path / "objects.jsonl").write_text("\n".join(objects) + "\n")
    code, records = run("answer", "rows.tsv", "objects.jsonl", "--batch-size=1")
    said = capsys.readouterr().err
    assert code == 1 and [record["id"] for record in records] == [row.split("\t")[0], "x"]
    for place, problem in [
        ("rows.tsv, line 2", "columns"), ("rows.tsv, line 3", "not valid base64"),
        ("objects.jsonl, object 2", "there is no 'question'"), ("objects.jsonl, object 3", "not a JSON object"),
        ("objects.jsonl, object 4", "not a JSON object"), ("objects.jsonl, object 5", "its 'image' is not a text"),
        ("objects.jsonl, object 6", "its id is neither"),
    ]:  # fmt: skip
        assert any(line.startswith(place) and problem in line for line in said.splitlines()), place


def test_every_row_is_answered_once_also_where_ids_repeat(run, tmp_path):
    path = shutil.copy(ROOT / "tests/cases/vqa_dup_ids.tsv", tmp_path / "rows.tsv")
    code, whole = run("answer", path)
    assert code == 0 and [record["id"] for record in whole] == ["101096"] * 3
    assert [record.get("row") for record in whole] == [None, 1, 2]
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    for kept in ([], [0], [1], [2], [0, 2], [1, 2], [0, 1, 2]):
        Path("out.jsonl").write_bytes(b"".join(lines[row] for row in kept))
        code, records = run("answer", path)
        missing = [record for row, record in enumerate(whole) if row not in kept]
        assert code == 0 and records == [*(whole[row] for row in kept), *missing]


def test_a_row_that_was_bad_is_answered_when_it_is_good(run, tmp_path):
    rows = (ROOT / "tests/cases/vqa_dup_ids.tsv").read_text().splitlines()
    for bad in ("101096\tshort", rows[0].replace("iVBOR", "???")):
        Path("out.jsonl").unlink(missing_ok=True)
        Path("rows.tsv").write_text("\n".join([bad, *rows[1:]]) + "\n")
        assert run("answer", "rows.tsv")[0] == 1
        Path("rows.tsv").write_text("\n".join(rows) + "\n")
        code, records = run("answer", "rows.tsv")
        assert code == 0 and [record.get("row") for record in records] == [1, 2, None]


def test_a_flag_gives_texts_to_items_without_one(run, album, loaded):
    (album.parent / "some.jsonl").write_text('{"image": "album/a.jpg", "prompt": "where?"}\n{"image": "album/a.jpg"}\n')
    _, records = run("generate", "some.jsonl", "--prompt=what is it?", *QUICK)
    expected = loaded.generate(album / "a.jpg", ["where?", "what is it?"], beam=1, max_len_b=3)
    assert [record["text"] for record in records] == [found.text for found in expected]
    _, records = run("generate", "--prompt=what is it?", *QUICK, output="alone.jsonl")
    assert [record["id"] for record in records] == [0]


def test_an_item_too_long_for_the_model_does_not_stop_the_others(run, capsys):
    Path("long.jsonl").write_text(json.dumps({"prompt": "word " * 1100}) + '\n{"prompt": "a word"}\n')
    code, records = run("generate", "long.jsonl", *QUICK)
    assert code == 1 and [record["id"] for record in records] == [1]
    assert "long.jsonl, object 1: " in capsys.readouterr().err


def test_results_go_to_standard_output_without_a_file(checkpoint, album, capfdbinary):
    code = predict.main(["caption", str(album / "a.jpg"), f"--checkpoint={checkpoint}", "--device=cpu", *QUICK])
    assert code == 0 and json.loads(capfdbinary.readouterr().out)["id"] == str(album / "a.jpg")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["caption", "gone.tsv"], "gone.tsv"),
        (["answer", "gone.jsonl"], "gone.jsonl cannot be read"),
        (["caption", "empty"], "empty holds no images"),
        (["caption", "empty", "--output=out.jsonl"], "out.jsonl, line 1 is not a record with 'id' and 'caption'"),
        (["classify", "a.png"], "has no list of classes: pass --candidates FILE."),
        (["caption", "a.png", "--set=patch_size=3"], "There is no option patch_size"),
        (["caption", "a.png", "--set=compile=True"], "error: --set compile=... has its own flag"),
        (["caption", "a.png", "--set=bpe_dir=nowhere"], "nowhere"),
        (["caption", "a.png", "--dtype=foo"], "--dtype 'foo' is unknown"),
        (["caption", "a.png", "--set=device=cpu"], "pass --device"),
        (["caption", "a.png", "--decoding", '{"beams": 3}'], "no decoding option 'beams'"),
        (["answer", "a.png"], "a.png has no question: pass --question or a table with a column 'question'"),
        (["entail", "rows.csv"], "rows.csv has no hypothesis: pass --hypothesis or a table with a column 'hypothesis'"),
        (["caption", "rows.csv", "--columns=image=caption"], "has no column 'caption'"),
        (["answer", "coco.json"], "coco.json has no question: pass --question or"),
        (["answer", "rows.tsv", "--selected-cols=0,1"], "rows.tsv has no question: pass --question or"),
        (["answer", "rows.tsv", "--selected-cols=0,1,2,3,4"], "the columns are id, image, question, objects"),
    ],
)
def test_wrong_inputs_are_one_sentence_and_code_2(argv, message, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Image.new("RGB", (9, 9)).save("a.png")
    if "--output=out.jsonl" in argv:
        argv = ["caption", "a.png", argv[2]]
        Path("out.jsonl").write_text('{"id": 1, "answer": "a"}\n')
    Path("rows.tsv").write_text("1\t2\t3\t4\t5\n")
    Path("rows.csv").write_text("id,image\n1,a.png\n")
    Path("coco.json").write_text('{"images": [{"id": 1, "file_name": "a.png"}]}')
    assert predict.main([*argv, f"--checkpoint={checkpoint}", "--device=cpu"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("predict.py: error: ") and message in said[0]


@pytest.mark.parametrize("argv", [["caption", "x.jpg"], ["guess"], ["ground", "x", "--checkpoint=c", "--n-best=0"], []])
def test_wrong_command_lines(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        predict.main(argv)
    assert caught.value.code == 2 and "predict.py" in capsys.readouterr().err


def test_every_subcommand_has_help(capsys):
    for command in predict.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            predict.parse_args([command, "--help"])
        assert caught.value.code == 0 and "--checkpoint" in capsys.readouterr().out


def test_drawing_without_a_vqgan_leaves_no_folder(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert predict.main(["draw", "a cat", f"--checkpoint={checkpoint}", "--device=cpu", "--folder=made"]) == 2
    assert "Drawing needs a VQGAN" in capsys.readouterr().err and not Path("made").exists()


@pytest.mark.parametrize("flags", [["--device=gpu"], ["--device=cuda:99"], ["--dtype=int3"], ["--set=ema=7"],
                                   ["--set=patch_image_size=-1"], ["--set=patch_image_size=big"]])  # fmt: skip
def test_wrong_values_are_one_sentence(flags, checkpoint, album, capsys):
    assert predict.main(["caption", str(album / "a.jpg"), f"--checkpoint={checkpoint}", "--device=cpu", *flags]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("predict.py: error: ")


def test_blank_texts_large_images_and_folders_in_folders(run, album, tmp_path, capsys):
    (album / "more").mkdir()
    Image.new("RGB", (4, 4)).save(album / "more/c.png")
    code, records = run("ground", album, "--phrase=the car", "--recursive", "--max-image-pixels=700")
    assert code == 1 and [record["id"] for record in records] == [str(album / "more/c.png")]
    said = capsys.readouterr().err
    assert "40 x 20 = 800 pixels, more than the 700" in said and "left out 1 files" in said and ".txt" in said
    (tmp_path / "some.jsonl").write_text(
        '{"image": "album/a.jpg", "phrase": " "}\n{"image": "album/a.jpg", "phrase": "a"}\n'
    )
    code, records = run("ground", "some.jsonl", output="2.jsonl")
    assert code == 1 and len(records) == 1 and "object 1: the text has no words" in capsys.readouterr().err


def test_half_a_character_costs_one_item_only(run, tmp_path, capsys):
    shutil.copy(ROOT / "tests" / "cases" / "surrogate.jsonl", tmp_path)
    Image.new("RGB", (20, 20), "red").save(tmp_path / "plain.png")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "plain.jpg")
    code, records = run("answer", "surrogate.jsonl")
    assert code == 1 and [record["id"] for record in records] == [0, 2]
    error = capsys.readouterr().err
    assert "surrogate.jsonl, object 2: " in error and "half of a surrogate pair" in error and "Traceback" not in error


def in_processes(argv, count, killed=None):
    """Runs a command line in forks as torchrun would; the first one's exit code.

    killed: (rank, n): this process is killed at its n-th write, whose line is then only half there.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(count):
        if pid := os.fork():
            pids.append(pid)
            continue
        code = 99
        try:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
            if killed and killed[0] == rank:
                _die_at(killed[1])
            code = predict.main(argv)
        finally:
            os._exit(code)
    status = {}
    while len(status) < count:
        pid, ended = os.wait()
        if pid in pids:
            status[pid] = ended
            if os.WIFSIGNALED(ended):  # as torchrun does
                for other in set(pids) - set(status):
                    os.kill(other, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status[pids[0]])


def _die_at(number):
    write, count = RecordParts.write, itertools.count()

    def dying(self, entries):
        if next(count) < number:
            return write(self, entries)
        write(self, entries[:1])
        with open(self.files._file.fileno(), "rb+", closefd=False) as file:
            file.truncate(file.seek(0, os.SEEK_END) - 3)
        os.kill(os.getpid(), signal.SIGKILL)

    RecordParts.write = dying


def test_two_processes_killed_at_ten_moments_write_what_one_writes(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = OFAPredictor.load(checkpoint, "cpu", batch_size=4)
    monkeypatch.setattr(predict, "load_predictor", lambda args: loaded)  # forks share it
    rows = (TSV / "vqa_gen/vqa_val.tsv").read_text().splitlines()
    columns = [row.split("\t") for row in rows] * 40
    many = ["\t".join([str(number // 2), *row[1:]]) for number, row in enumerate(columns[:58])]
    many[17] = "17\tshort"
    Path("rows.tsv").write_text("\n".join(many) + "\n")
    argv = ["answer", "rows.tsv", "--checkpoint", str(checkpoint), "--device=cpu", "--batch-size=4", "--num-workers=1"]
    assert predict.main([*argv, "--output=one.jsonl"]) == 1
    expected = Path("one.jsonl").read_bytes()
    assert expected.count(b"\n") == 57
    for moment in range(10):
        rank, number = moment % 2, moment // 2
        code = in_processes([*argv, "--output=two.jsonl"], 2, killed=(rank, number))
        assert code == -signal.SIGKILL and not Path("two.jsonl").exists() and Path("two.jsonl.parts").exists()
        if moment % 3 == 0:  # one process alone goes on as well
            assert predict.main([*argv, "--output=two.jsonl"]) == 1
        else:
            assert in_processes([*argv, "--output=two.jsonl"], 2 + moment % 2) == 1
        assert Path("two.jsonl").read_bytes() == expected and not Path("two.jsonl.parts").exists()
        Path("two.jsonl").unlink()


def test_processes_flag_starts_them_and_the_summary_counts_all(album, checkpoint, capfd, monkeypatch):
    monkeypatch.chdir(album.parent)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (album / "c.png").write_bytes(b"no image")
    argv = ["caption", "album", f"--checkpoint={checkpoint}", "--device=cpu", "--batch-size=1", *QUICK]
    assert predict.main([*argv, "--output=two.csv", "--processes=2", "--json"]) == 1
    out, err = capfd.readouterr()
    summary = json.loads(out)
    assert (summary["rows"], summary["written"], summary["skipped"], summary["before"]) == (3, 2, 1, 0)
    assert summary["rows_per_second"] > 0 and 0 <= summary["waiting_share"] <= 1
    assert err.count("album/c.png") == 1 and err.count("left out 1 files") == 1
    assert [record["id"] for record in read_table("two.csv")] == ["album/a.jpg", "album/b.png"]
    assert predict.main([*argv, "--output=one.jsonl"]) == 1
    assert Path("one.jsonl").read_bytes() == Path("two.csv.jsonl").read_bytes()


def test_parts_of_another_run_are_refused(album, start, capsys):
    argv = ["caption", "album/a.jpg", *QUICK]
    Path("out.jsonl.parts").mkdir()
    Path("out.jsonl.parts/000001.jsonl").write_text('{"run": "x"}\n')
    assert start("out.jsonl", *argv) == 2
    assert "out.jsonl.parts was left by a run with other inputs" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--processes=2"], ["--json"], ["--processes=0", "--output=a.jsonl"]])
def test_several_processes_need_a_file(flags, album, checkpoint, capsys):
    with pytest.raises(SystemExit) as caught:
        predict.main(["caption", str(album / "a.jpg"), f"--checkpoint={checkpoint}", *flags])
    assert caught.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_questions_about_one_image_send_it_through_the_trunk_once(run, album, loaded, monkeypatch):
    Path("some.jsonl").write_text(
        "".join(
            json.dumps({"image": f"album/{'ab'[n % 2]}.{'jp'[n % 2]}{'pn'[n % 2]}g", "question": f"what {n}?"}) + "\n"
            for n in range(6)
        )
    )
    seen = []
    trunk = type(loaded.model.encoder.embed_images)
    monkeypatch.setattr(trunk, "forward", lambda self, x, plain=trunk.forward: seen.append(len(x)) or plain(self, x))
    _, records = run("answer", "some.jsonl")
    assert seen == [2]
    _, alone = run("answer", "some.jsonl", "--batch-size=1", output="alone.jsonl")
    assert [r["answer"] for r in alone] == [r["answer"] for r in records] and seen == [2] + [1] * 6
    assert [r["score"] for r in alone] == pytest.approx([r["score"] for r in records], rel=1e-4)
