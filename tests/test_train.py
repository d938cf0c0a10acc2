"""Through the front door: train.py and evaluate.py on digit scenes; kills, resumes, two processes, bad input."""

import json

import pytest
import torch

import evaluate
import train
from digits.__main__ import main as build_demo
from tests.programs import ROOT, SMALL, kill_after, run

ROWS = 36
pytestmark = pytest.mark.slow
TRAIN = [
    *SMALL, "--task=caption", "--criterion=adjust_label_smoothed_cross_entropy", "--label-smoothing=0.1",
    "--selected-cols=0,4,2", "--patch-image-size=48", "--code-dict-size=0", "--num-bins=0", "--optimizer=adam",
    "--lr=1e-3", "--lr-scheduler=polynomial_decay", "--warmup-ratio=0.1", "--clip-norm=1.0", "--dropout=0.1",
    "--encoder-drop-path-rate=0.1", "--max-epoch=2", "--log-format=simple", "--log-interval=1", "--scale-attn",
    "--scale-fc", "--scale-heads", "--disable-entangle", "--keep-last-epochs=1", "--store-ema", "--ema-decay=0.9",
    "--image-bucket-size=8",
]  # fmt: skip
GENERATE = ["--task=caption", "--batch-size=5", "--beam=2", "--max-len-b=12", "--gen-subset=test"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Digit scenes: 36 training, 7 validation and 11 test rows."""
    folder = tmp_path_factory.mktemp("demo")
    assert build_demo([str(folder), f"--train={ROWS}", "--val=7", "--test=11", "--size=48"]) == 0
    return folder


def training_args(demo, save_dir, *more):
    data = f"{demo}/caption_data/caption_stage1_train.tsv,{demo}/caption_data/caption_val.tsv"
    return [data, f"--bpe-dir={ROOT}/digits/BPE", f"--save-dir={save_dir}", *TRAIN, *more]


def train_and_kill(demo, save_dir, *more, checkpoint, processes=1):
    kill_after(save_dir / checkpoint, "train.py", *training_args(demo, save_dir, *more), processes=processes)


def weights(path):
    state = torch.load(path, weights_only=True)
    return {**state["model"], **{f"ema.{k}": v for k, v in state["extra_state"]["ema"].items()}}, state


def assert_same_training(first, second):
    (one, state), (two, other) = weights(first), weights(second)
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert not different
    assert state["optimizer_history"][-1]["num_updates"] == other["optimizer_history"][-1]["num_updates"]


MIDDLE = ["--save-interval-updates=3", "--disable-validation"]


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """An uninterrupted run of 2 epochs x 9 updates, two micro-batches each but the last, in one process."""
    save_dir = tmp_path_factory.mktemp("whole")
    output = run("train.py", *training_args(demo, save_dir, "--batch-size=2", "--update-freq=2", *MIDDLE))
    return save_dir, output


def test_training_reports_and_saves(trained):
    save_dir, output = trained
    assert "Total steps 18, warmup steps 1" in output and "num_updates 18" in output
    assert (save_dir / "checkpoint_last.pt").exists() and (save_dir / "checkpoint2.pt").exists()
    assert not list(save_dir.glob("*.tmp*"))
    losses = [float(line.split(" loss=")[1].split(",")[0]) for line in output.splitlines() if " loss=" in line]
    assert len(losses) == 18 and losses[-1] < losses[0]


def test_killed_in_the_middle_of_an_epoch_resumes_bit_identically(demo, trained, tmp_path):
    more = ["--batch-size=2", "--update-freq=2", *MIDDLE]
    train_and_kill(demo, tmp_path, *more, checkpoint="checkpoint_1_3.pt")
    output = run("train.py", *training_args(demo, tmp_path, *more))
    assert "Loaded checkpoint" in output
    assert_same_training(trained[0] / "checkpoint_last.pt", tmp_path / "checkpoint_last.pt")


def test_torn_checkpoint_gives_way_to_the_previous_one(demo, trained, tmp_path):
    more = ["--batch-size=2", "--update-freq=2", *MIDDLE]
    for name in ("checkpoint_1_3.pt", "checkpoint_1_6.pt"):
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    torn = (trained[0] / "checkpoint_2_12.pt").read_bytes()
    (tmp_path / "checkpoint_last.pt").write_bytes(torn[: len(torn) // 2])
    output = run("train.py", *training_args(demo, tmp_path, *more))
    assert "checkpoint_last.pt" in output and f"Resuming from {tmp_path}/checkpoint_1_6.pt" in output
    assert_same_training(trained[0] / "checkpoint_last.pt", tmp_path / "checkpoint_last.pt")


def test_two_processes_resume_with_the_same_samples(demo, tmp_path):
    more = ["--batch-size=3", "--num-workers=1", "--find-unused-parameters", *MIDDLE]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("train.py", *training_args(demo, whole, *more), processes=2)
    train_and_kill(demo, killed, *more, checkpoint="checkpoint_last.pt", processes=2)
    assert "Loaded checkpoint" in run("train.py", *training_args(demo, killed, *more), processes=2)
    assert_same_training(whole / "checkpoint_last.pt", killed / "checkpoint_last.pt")


def evaluate_args(demo, checkpoint, results, *more, data="caption_test.tsv"):
    overrides = {"data": f"{demo}/caption_data/{data}", "bpe_dir": f"{ROOT}/digits/BPE", "selected_cols": "1,4,2"}
    path = f"{demo}/caption_data/{data}"
    return [
        path,
        f"--path={checkpoint}",
        f"--results-path={results}",
        f"--model-overrides={overrides}",
        *GENERATE,
        *more,
    ]


def test_evaluation_is_the_same_for_one_and_two_processes(demo, trained, tmp_path):
    checkpoint = trained[0] / "checkpoint_last.pt"
    outputs = {}
    for processes in (1, 2):
        results = tmp_path / str(processes)
        run("evaluate.py", *evaluate_args(demo, checkpoint, results, "--num-workers=1"), processes=processes)
        outputs[processes] = [json.loads((results / f"test_{kind}.json").read_text()) for kind in ("predict", "scores")]
    assert outputs[1] == outputs[2]
    records = outputs[1][0]
    rows = (demo / "caption_data/caption_test.tsv").read_text().splitlines()
    assert [record["image_id"] for record in records] == [int(row.split("\t")[1]) for row in rows]
    assert all(set(record) == {"image_id", "caption"} for record in records)


def test_ensemble_of_averaged_weights_runs(demo, trained, tmp_path):
    paths = f"{trained[0]}/checkpoint_last.pt:{trained[0]}/checkpoint_2_12.pt"
    evaluate.main(evaluate_args(demo, paths, tmp_path, "--ema-eval"))
    assert len(json.loads((tmp_path / "test_predict.json").read_text())) == 11


def test_validation_scores_captions(demo, tmp_path):
    more = ["--batch-size=12", "--max-epoch=1", "--eval-cider", '--eval-args={"beam":2,"max_len_b":8}', "--bf16"]
    more += [
        "--best-checkpoint-metric=cider",
        "--maximize-best-checkpoint-metric",
        f"--tensorboard-logdir={tmp_path}/tb",
    ]
    output = run("train.py", *training_args(demo, tmp_path, *more))
    assert (
        "valid on 'valid' subset" in output and "| cider " in output and "best_cider" not in output.split("valid on")[0]
    )
    assert (tmp_path / "checkpoint_best.pt").exists() and list((tmp_path / "tb").rglob("events*"))


def test_float16_without_a_gpu_goes_on_in_float32(demo, trained, tmp_path, capsys):
    more = ["--batch-size=18", "--max-epoch=1", "--disable-validation", "--fp16", "--fp16-scale-window=4", "--cpu"]
    train.main(training_args(demo, tmp_path, *more))
    assert "--fp16 needs a GPU" in capsys.readouterr().out
    state = weights(tmp_path / "checkpoint_last.pt")[1]
    assert state["optimizer_history"][-1]["optimizer_name"] == "FairseqAdam"
    evaluate.main(evaluate_args(demo, trained[0] / "checkpoint_last.pt", tmp_path, "--fp16", "--cpu"))
    assert len(json.loads((tmp_path / "test_predict.json").read_text())) == 11


def sentence(output):
    """The last line of a failed program: its only error line."""
    return next(line for line in reversed(output.splitlines()) if ": error: " in line)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "nowhere.tsv,nowhere.tsv"}, ["nowhere.tsv"]),
        ({"flags": ["--selected-cols=0,9,2"]}, ["line 1", "column"]),
        ({"flags": ["--bpe-dir=/nowhere"]}, ["/nowhere"]),
        ({"flags": ["--eval-cider", "--eval-args={beam}"]}, ["--eval-args"]),
        ({"flags": ["--constraint-range=nine"]}, ["--constraint-range"]),
        ({"row": "1\t1\tx\ty\t!!!\n"}, ["line 2", "base64", "--skip-bad-rows"]),
        ({"empty": True}, ["caption_val.tsv", "no rows"]),
        ({"layers": True}, ["--encoder-layers 1"]),
    ],
    ids=lambda value: next(iter(value)) + str(next(iter(value.values())))[:24] if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence(change, words, demo, trained, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("caption_stage1_train.tsv", "caption_val.tsv"):
        (folder / name).write_bytes((demo / "caption_data" / name).read_bytes())
    if "row" in change:
        file = folder / "caption_stage1_train.tsv"
        rows = file.read_text().splitlines(keepends=True)
        file.write_text("".join([rows[0], change["row"], *rows[1:]]))
    if "empty" in change:
        (folder / "caption_val.tsv").write_text("")
    data = change.get("data", f"{folder}/caption_stage1_train.tsv,{folder}/caption_val.tsv")
    flags = [
        f"--bpe-dir={ROOT}/digits/BPE",
        f"--save-dir={tmp_path}/save",
        *TRAIN,
        "--batch-size=18",
        "--no-shuffle-rows",
    ]
    if "layers" in change:
        flags += ["--encoder-layers=3", f"--restore-file={trained[0]}/checkpoint_last.pt"]
    with pytest.raises(SystemExit) as caught:
        train.main([data, *flags, *change.get("flags", [])])
    assert caught.value.code == 2
    message = sentence(capsys.readouterr().err)
    assert all(word in message for word in words), message
    assert not list((tmp_path / "save").glob("*.pt"))


def test_skipped_rows_are_counted(demo, trained, tmp_path, capsys):
    good = (demo / "caption_data/caption_test.tsv").read_text().splitlines(keepends=True)[:3]
    test = demo / "caption_data/broken.tsv"
    test.write_text(good[0] + "9\t9\tx\ty\t!!!\n" + "".join(good[1:]))
    checkpoint = trained[0] / "checkpoint_last.pt"
    args = evaluate_args(demo, checkpoint, tmp_path, data="broken.tsv")
    with pytest.raises(SystemExit):
        evaluate.main(args)
    assert "line 2" in sentence(capsys.readouterr().err) and not list(tmp_path.glob("*.json"))
    skip = [word.replace("}", ", 'skip_bad_rows': True}") if "overrides" in word else word for word in args]
    evaluate.main(skip)
    assert len(json.loads((tmp_path / "test_predict.json").read_text())) == 3
    assert json.loads((tmp_path / "test_scores.json").read_text())["skipped_rows"] == 1


def test_overrides_are_never_executed(demo, trained, tmp_path, capsys):
    args = [*evaluate_args(demo, trained[0] / "checkpoint_last.pt", tmp_path)]
    args[3] = "--model-overrides=__import__('os').system('touch " + str(tmp_path / "x") + "')"
    with pytest.raises(SystemExit):
        evaluate.main(args)
    assert "--model-overrides" in sentence(capsys.readouterr().err)
    assert not (tmp_path / "x").exists()


def test_more_processes_than_rows(demo, trained, tmp_path):
    (demo / "caption_data/one.tsv").write_text(
        (demo / "caption_data/caption_test.tsv").read_text().splitlines()[0] + "\n"
    )
    args = evaluate_args(demo, trained[0] / "checkpoint_last.pt", tmp_path, data="one.tsv")
    assert "2 ranks cannot share 1 rows" in run("evaluate.py", *args, processes=2, code=1)
