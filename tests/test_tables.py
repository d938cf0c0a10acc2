"""Tables with images as files, through the programs: the same run as from TSV files."""

import ast
import json

import pytest
import torch

import evaluate
import train
from data.images import decode_base64
from data.tasks import TASKS
from data.tsv import TsvFile
from digits.__main__ import main as build_demo
from tests.programs import ROOT, kill_after
from tests.sources import write_csv, write_jsonl, write_parquet, write_saved
from tests.test_run_scripts import dry_run
from tests.test_train import TRAIN

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Digit scenes as TSV, and the same rows as CSV and Parquet, JSON lines and a saved dataset with image files."""
    folder = tmp_path_factory.mktemp("demo")
    assert build_demo([str(folder), "--train=14", "--val=5", "--test=0", "--size=48", "--tasks=caption"]) == 0
    folder /= "caption_data"
    (folder / "photos").mkdir()
    for split in ("stage1_train", "val"):
        rows = TsvFile(folder / f"caption_{split}.tsv", TASKS["caption"].selected_cols)
        records = []
        for number, (name, image, caption) in enumerate(rows):
            (folder / "photos" / f"{split}{number}.png").write_bytes(decode_base64(image))
            records.append({"file_name": f"{split}{number}.png", "key": name, "caption": caption})
        for name, write in TABLES[split].items():
            write(folder / name, records)
    return folder


TABLES = {
    "stage1_train": {"train.csv": write_csv, "train.parquet": write_parquet, "train.jsonl": write_jsonl},
    "val": {"val.jsonl": write_jsonl, "saved": write_saved},
}
NAMED = ["--columns=image=file_name,id=key", "--image-root={}/photos"]


def test_training_and_evaluation_are_those_of_tsv_files(demo, tmp_path):
    options = [*TRAIN, "--max-epoch=2", "--batch-size=4", "--num-workers=1", f"--bpe-dir={ROOT}/digits/BPE"]
    files = {
        "tsv": ("caption_stage1_train.tsv", "caption_stage1_train.tsv", "caption_val.tsv"),
        "tables": ("train.csv", "train.parquet", "val.jsonl"),
    }
    named = [flag.format(demo) for flag in NAMED]
    predictions = []
    for kind, names in files.items():
        data = ",".join(str(demo / name) for name in names)
        more = named if kind == "tables" else []
        train.main([data, f"--save-dir={tmp_path}/{kind}", "--disable-validation", *options, *more])
        results = f"--results-path={tmp_path}/results_{kind}"
        generate = ["--task=caption", "--batch-size=3", "--beam=2", "--max-len-b=6", f"--bpe-dir={ROOT}/digits/BPE"]
        path = f"--path={tmp_path}/{kind}/checkpoint_last.pt"
        data = str(demo / (names[-1] if kind == "tsv" else "saved"))
        evaluate.main([data, path, results, *generate])  # columns are those of training
        predictions.append((tmp_path / f"results_{kind}" / "test_predict.json").read_text())
    one, two = (torch.load(tmp_path / kind / "checkpoint_last.pt", weights_only=True)["model"] for kind in files)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert predictions[0] == predictions[1] and len(json.loads(predictions[0])) == 5


def test_a_run_that_was_killed_goes_on_with_the_rows_left(demo, tmp_path):
    options = [f"{demo}/train.jsonl,{demo}/val.jsonl", *(flag.format(demo) for flag in NAMED), *TRAIN]
    options += ["--max-epoch=1", "--batch-size=4", "--disable-validation", "--save-interval-updates=2"]
    options += [f"--bpe-dir={ROOT}/digits/BPE"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train.main([*options, f"--save-dir={whole}"])
    kill_after(killed / "checkpoint_last.pt", "train.py", *options, f"--save-dir={killed}")
    state = torch.load(killed / "checkpoint_last.pt", weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] < 4
    train.main([*options, f"--save-dir={killed}"])
    one, two = (torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"] for folder in (whole, killed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_scripts_take_other_files():
    (words,) = dry_run("train_vqa_distributed.sh", DATA_FILES="my train.csv,val.csv", SIZE="base")
    assert "my train.csv,val.csv" in words
    (words,) = dry_run("evaluate_caption.sh", DATA_FILES="it's.jsonl")
    overrides = next(word for word in words if word.startswith("--model-overrides="))
    assert "it's.jsonl" in words and ast.literal_eval(overrides.partition("=")[2])["data"] == "it's.jsonl"
