"""Two commands from the files that people have to a trained model and a leaderboard file.

The first builds data files from those of a published dataset and prints the second, which trains; tables and folders
of images need no first one.
"""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

import evaluate
import train
from data.builders.build import main
from data.tasks import TASKS
from data.tsv import TsvFile
from data.vqa_gen import parse_answers
from tests.originals import write_originals
from tests.programs import ROOT, SMALL
from tests.sources import image_bytes, write_csv, write_jsonl, write_parquet

pytestmark = pytest.mark.slow
QUICK = ["--restore-file=none", "--max-epoch=1", "--max-update=2", "--batch-size=4", "--update-freq=1", "--cpu"]
QUICK += ["--patch-image-size=32", *SMALL]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digit scenes in the layouts of published datasets (`coco`), and as the released TSV files."""
    more = ("snli_ve", "image_classify")
    return write_originals(tmp_path_factory.mktemp("have"), train=8, val=3, more=more)


def start(words, *more, **env):
    """Runs here what a run script would: its name after `bash` in the words of a command line."""
    at = words.index("bash")
    given = dict(word.split("=", 1) for word in words[:at])
    settings = {"SIZE": "demo", "GPUS_PER_NODE": "1", "PRECISION": "fp32", "OFA_PYTHON": "python", "DRY_RUN": "1"}
    printed = subprocess.run(
        ["sh", str(ROOT / words[at + 1]), *words[at + 2 :], *more],
        env={**os.environ, **settings, **given, **env},
        capture_output=True,
        text=True,
    )
    assert printed.returncode == 0, printed.stderr
    _, program, *flags = shlex.split(printed.stdout)
    {"train.py": train.main, "evaluate.py": evaluate.main}[Path(program).name](flags)


def train_and_evaluate(training, evaluation, out, flags=()):
    """The records of the leaderboard file of a model that the words of a command line trained."""
    start(training, *flags, *QUICK, OUTPUT_DIR=str(out))
    (checkpoint,) = out.glob("*checkpoints/*/checkpoint_last.pt")
    start(evaluation, *flags, "--cpu", CHECKPOINT=str(checkpoint), RESULTS_DIR=str(out / "results"))
    (predicted,) = out.glob("results/*/*_predict.json")
    return json.loads(predicted.read_text())


# Task -> the builder's words, the file to evaluate, and the script that does so with its own words.
BUILDS = {
    "caption": (
        ["--images=caption", *(f"--{split}=captions_{split}2014.json" for split in ("train", "val", "test"))],
        "caption_data/caption_test.jsonl", ["caption/evaluate_caption.sh"],
    ),
    "vqa_gen": (
        ["--images=vqa", *(word for split in ("train", "val") for word in (
            f"--{split}", f"v2_OpenEnded_mscoco_{split}2014_questions.json", f"v2_mscoco_{split}2014_annotations.json",
        ))], "vqa_data/vqa_val.jsonl", ["vqa/evaluate_vqa_allcand.sh", "val"],
    ),
    "refcoco": (
        ["--images=refcoco", "--annotations", "refs.json", "instances.json"], "refcoco_data/refcoco_testA.jsonl",
        ["refcoco/evaluate_refcoco.sh"],
    ),
    "image_classify": (
        ["--train=classes/train", "--val=classes/val"], "imagenet_1k_data/imagenet_1k_val.jsonl",
        ["image_classify/evaluate_imagenet.sh"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", BUILDS)
def test_published_files_become_a_leaderboard_file(task, folder, tmp_path, capsys, monkeypatch):
    words, file, (script, *more) = BUILDS[task]
    monkeypatch.chdir(folder / "coco")
    assert main([task, *words, f"--output={tmp_path / 'my data'}"]) == 0
    training = shlex.split(capsys.readouterr().out.splitlines()[-1])
    path = tmp_path / "my data" / file
    settings = [f"DATA_DIR={tmp_path}/my data", f"DATA_FILES={path}", "SUBSETS=refcoco_testA"]
    predicted = train_and_evaluate(training, [*settings, "bash", f"run_scripts/{script}", *more], tmp_path)
    check(task, predicted, [json.loads(line).get("id") for line in path.read_text().splitlines()])


def save_images(folder, rows):
    """Writes the images of rows to files of a folder; the rows with names of files instead."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        (folder / f"{number}.jpg").write_bytes(image_bytes(row["image"]))
    return [{**row, "image": f"{number}.jpg"} for number, row in enumerate(rows)]


def as_csv(path, rows):
    """Columns with names of their own, and images in a folder that a flag names."""
    names = {"id": "key", "image": "photo", "hypothesis": "said", "caption": "about", "label": "verdict"}
    root = path.parent / "photos"
    rows = [{names[name]: f"{path.stem}/{value}" if name == "image" else value for name, value in row.items()}
            for row in save_images(root / path.stem, rows)]  # fmt: skip
    columns = ",".join(f"{name}={column}" for name, column in names.items())
    return write_csv(path, rows), [f"--columns={columns}", f"--image-root={root}"]


def as_jsonl(path, rows):
    """Paths of images from the folder of the file on; the caption has another name."""
    rows = [
        {"id": row["id"], "image": f"photos {path.stem}/{row['image']}", "text": row["caption"]}
        for row in save_images(path.parent / f"photos {path.stem}", rows)
    ]
    return write_jsonl(path, rows), ["--columns=caption=text"]


def as_parquet(path, rows):
    """Images in the table, under another name, and a file of the answers to choose among."""
    answers = {answer: None for row in rows for answer in parse_answers(row["answers"])}
    known = path.parent / "answers.txt"
    if not known.exists():
        known.write_text("".join(f"{answer}\n" for answer in answers))
    rows = [{"photo": image_bytes(row.pop("image")), **row} for row in rows]
    return write_parquet(path, rows), ["--columns=image=photo", f"--ans2label-file={known}"]


def as_folder(path, rows):
    """A folder of images for each class, and a file of the classes."""
    for number, row in enumerate(rows):
        (path / row["name"]).mkdir(parents=True, exist_ok=True)
        (path / row["name"] / f"{number}.jpg").write_bytes(image_bytes(row["image"]))
    known = path.parent / "classes.txt"
    if not known.exists():
        known.write_text("".join(f"{row['name']}\n" for row in rows))
    return path, ["--columns=name=label", f"--ans2label-file={known}"]


# Kind of source -> task, what writes it and its ending, files of the demo, and both scripts.
SOURCES = {
    "csv": (
        "snli_ve", as_csv, ".csv", ["snli_ve_data/snli_ve_train", "snli_ve_data/snli_ve_dev"],
        "snli_ve/train_snli_ve.sh", ["snli_ve/evaluate_snli_ve.sh", "dev"],
    ),
    "jsonl": (
        "caption", as_jsonl, ".jsonl", ["caption_data/caption_stage1_train", "caption_data/caption_val"],
        "caption/train_caption_stage1.sh", ["caption/evaluate_caption.sh"],
    ),
    "parquet": (
        "vqa_gen", as_parquet, ".parquet", ["vqa_data/vqa_train", "vqa_data/vqa_val"],
        "vqa/train_vqa_distributed.sh", ["vqa/evaluate_vqa_allcand.sh", "val"],
    ),
    "imagefolder": (
        "image_classify", as_folder, "", ["imagenet_1k_data/imagenet_1k_train", "imagenet_1k_data/imagenet_1k_val"],
        "image_classify/train_imagenet_distributed.sh", ["image_classify/evaluate_imagenet.sh"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_tables_as_they_are_become_a_leaderboard_file(kind, folder, tmp_path):
    task, write, ending, names, training, (evaluation, *more) = SOURCES[kind]
    paths, ids = [], []
    for split, name in zip(("train", "val"), names, strict=True):
        table = TsvFile(folder / "released" / f"{name}.tsv", TASKS[task].selected_cols)
        rows = [dict(zip(TASKS[task].names, row, strict=True)) for row in table]
        ids = [row.get("id") for row in rows]
        path, flags = write(tmp_path / f"{split}{ending}", rows)
        paths.append(str(path))
    train = [f"DATA_FILES={','.join(paths)}", "bash", f"run_scripts/{training}"]
    evaluate = [f"DATA_FILES={paths[-1]}", "SUBSET=val", "bash", f"run_scripts/{evaluation}", *more]
    check(task, train_and_evaluate(train, evaluate, tmp_path, flags), ids)


def check(task, predicted, ids):
    """One record a row, with its id or, where the task has none, its number."""
    fields = TASKS[task].record
    key, kind = next(iter(fields.items()))
    assert len(predicted) == len(ids) == 3 and all(fields.keys() <= record.keys() for record in predicted)
    assert [record[key] for record in predicted] == [kind(name or number) for number, name in enumerate(ids)]
