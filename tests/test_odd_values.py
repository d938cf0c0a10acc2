"""Values of flags and inputs that nobody means: refused in one sentence, before anything is written."""

import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

import evaluate
import predict
import train
from data import validate
from data.answers import AnswerConfig, read_answers
from data.images import standard_transform
from data.items import open_items
from data.table_files import image_files
from digits.__main__ import main as build_demo
from models.predictor.stream import Lines
from models.weights.convert import main as convert
from tests.programs import ROOT
from utils.errors import UserError, one_sentence
from utils.files import check_folder
from utils.options import path_of
from utils.predictions import check_predictions, write_json
from utils.record_file import RecordFile

DEMO = ROOT / "checkpoints/ofa_demo.pt"
TRAIN = "a.tsv,b.tsv --task=caption --arch=ofa_tiny --criterion=adjust_label_smoothed_cross_entropy --lr=1".split()
EVALUATE = ["a.tsv", "--task=caption", "--path=a.pt"]


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The working directory, in which nothing may be written."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "program, argv, words",
    [
        (convert, [DEMO, ""], "the path is empty"),
        (convert, ["", "x.pt"], "the path is empty"),
        (build_demo, ["", "--train=0", "--val=0", "--test=0"], "the path is empty"),
        (build_demo, ["x", "--seed=-1"], "--seed"),
        (validate.main, ["refcoco", "x.tsv", "--workers=-1"], "--workers"),
        (validate.main, ["refcoco", "x.tsv", "--max-image-pixels=0"], "--max-image-pixels"),
        (validate.main, ["image_gen", "x.tsv", "--code-image-size=-8"], "--code-image-size"),
        (predict.main, ["draw", "a", "--checkpoint=x", "--seed=99999999999999999999999"], "4294967295"),
        (predict.main, ["caption", "a.png", "--checkpoint=x", "--batch-size=²"], "must be a positive integer"),
        (predict.main, ["caption", "a.png", "--checkpoint=x", "--output="], "the path is empty"),
        (predict.main, ["answer", "a.png", "--checkpoint=x", "--free", "--candidates=y"], "cannot be combined"),
        (predict.main, ["answer", "a.png", "--checkpoint=x", "--candidates="], "--candidates is empty"),
        (train.main, [*TRAIN, "--seed=99999999999999999999"], "--seed"),
        (train.main, [*TRAIN, "--num-workers=-1"], "--num-workers"),
        (train.main, [*TRAIN, "--batch-size=0"], "--batch-size 0"),
        (train.main, [*TRAIN, "--batch-size-valid=-2"], "--batch-size-valid -2"),
        (evaluate.main, [*EVALUATE, "--seed=-1"], "--seed"),
        (evaluate.main, [*EVALUATE, "--batch-size=0"], "--batch-size 0"),
        (evaluate.main, [*EVALUATE, "--gen-subset=../evil"], "--gen-subset=../evil is part of file names"),
    ],
    ids=lambda value: value.__module__ if callable(value) else "",
)
def test_flags(program, argv, words, empty_folder, capsys):
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(program([str(word) for word in argv]))
    said = capsys.readouterr().err
    assert caught.value.code == 2 and words in said and "Traceback" not in said


def test_the_home_folder_in_a_path(empty_folder):
    assert path_of("~/x") == Path.home() / "x" and path_of("a~") == Path("a~")


def test_a_checkpoint_is_not_converted_onto_itself(save_small_network, tmp_path, capsys):
    path = save_small_network(tmp_path / "a.pt")
    (tmp_path / "link.pt").symlink_to(path)
    before = path.read_bytes()
    for target in (path, tmp_path / "link.pt"):
        assert convert([str(path), str(target)]) == 2
        assert "is the checkpoint that is read" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("empty.jsonl", "\n \n", "is empty: write one item per line"),
        ("list.json", "[]", "objects are read from .jsonl"),
        (None, "", "An input is empty"),
        (None, "  ", "An input is empty"),
    ],
)
def test_inputs(name, content, words, tmp_path):
    path = content if name is None else str(tmp_path / name)
    if name is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        open_items(path, ("id", "image"), "0,1")


def test_an_object_too_deep_is_one_bad_item_among_good_ones(tmp_path):
    lines = [json.dumps({"image": "a.png"}), '{"id":' + "[" * 100_000, json.dumps({"image": "b.png"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    items = list(open_items(str(tmp_path / "a.jsonl"), ("id", "image"), "0,1").read())
    assert [item.problem for item in items] == ["", "it is not a JSON object", ""]
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="is not JSON"):
        check_predictions(tmp_path / "deep.json", {"image_id": str}, 1, None, None)


def test_a_pipe_in_a_folder_is_left_out(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.png").touch()
    images, left_out = image_files(tmp_path, recursive=False)
    assert [path.name for path in images] == ["a.png"] and "1 x pipe or device" in left_out


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.csv", "red,0\nblue,1\n", "is a table"),
        ("a.jsonl", '"red"\n"blue"\n', "quotes around every answer"),
        ("a.json", '["red", "red "]', "'red' twice"),
    ],
)
def test_answer_files(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        read_answers(AnswerConfig(ans2label_file=str(tmp_path / name)))


def test_options_of_another_kind_of_rows(tmp_path, capsys):
    (tmp_path / "a.tsv").write_text("x\n")
    for flag in ("--candidates=/nowhere", "--code-image-size=8"):
        assert validate.main(["refcoco", str(tmp_path / "a.tsv"), flag]) == 2
        assert f"{flag.split('=')[0]} has no meaning for rows of refcoco" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["/nowhere/article", "./article", "../a/b", "~/article", "articles/", "article.docx"])
def test_paths_are_no_texts(text):
    with pytest.raises(UserError, match="looks like a file"):
        open_items(text, ("text",), "0")


@pytest.mark.parametrize("text", ["/ is a slash", "a/b", "...", "and/or", "red", "He said so. /s"])
def test_texts_with_slashes_are_texts(text):
    assert open_items(text, ("text",), "0").size == 1


@contextmanager
def full_disk():
    """No file may grow beyond 100 bytes, pytest's own log among them: nothing else may run inside."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_named_with_what_to_do(tmp_path):
    with (
        pytest.raises(UserError, match=r"write .*a\.json: File too large; make room, or choose another place"),
        full_disk(),
    ):
        write_json("x" * 1000, tmp_path / "a.json")
    with RecordFile(tmp_path / "a.jsonl", "answer") as file, pytest.raises(OSError) as caught, full_disk():
        file.write(b"x" * 100_000)
    assert one_sentence(caught.value) == f"{tmp_path}/a.jsonl: File too large; make room, or choose another place."
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_errors_of_the_system_end_in_advice():
    assert one_sentence(FileNotFoundError(2, "No such file", "a")) == "a: No such file; check the path."
    assert one_sentence(PermissionError(13, "Permission denied", "a")).endswith("choose a place that you may use.")
    assert one_sentence(OSError("not the system's")) == "not the system's"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_folders_to_write_to_are_looked_at_first(name, tmp_path, capsys):
    (tmp_path / "file").touch()
    folder = tmp_path / name
    assert predict.main(["draw", "a red 3", "--checkpoint=nowhere", f"--folder={folder}"]) == 2
    assert f"--folder={folder} cannot be written to" in capsys.readouterr().err
    for flag in ("--results-path", "--gen-images-path"):
        with pytest.raises(UserError, match=f"{flag}=.* is not a folder"):
            check_folder(folder, flag)
    check_folder(tmp_path / "new" / "folder", "--results-path")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("side", [0, -1, 100_000])
def test_impossible_sides_of_images(side):
    with pytest.raises(UserError, match=f"patch_image_size is {side}: choose a side of 1 to 4096"):
        standard_transform(side)


def test_closed_output_is_a_sentence(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(UserError, match="Standard output is closed"):
        Lines(None)
