"""Every task through its own run scripts: train, validate, evaluate, JSON; one process and two give the same."""

import json
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import evaluate
import train
from digits.__main__ import main as build_demo
from tests.programs import run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
ROWS, TEST_ROWS = 12, 7
# task -> training script, evaluation script with its arguments, folder and name of the results, fields of a record
TASKS = {
    "caption": ("caption/train_caption_stage1", ["caption/evaluate_caption"], "caption/test", {"image_id", "caption"}),
    "vqa_gen": (
        "vqa/train_vqa_distributed", ["vqa/evaluate_vqa_allcand", "test"], "vqa_test_allcand/test",
        {"question_id", "answer"},
    ),
    "refcoco": ("refcoco/train_refcoco", ["refcoco/evaluate_refcoco"], "refcoco/refcoco_testA", {"uniq_id", "box"}),
    "snli_ve": (
        "snli_ve/train_snli_ve", ["snli_ve/evaluate_snli_ve", "test"], "snli_ve/test", {"uniq_id", "answer"},
    ),
    "image_classify": (
        "image_classify/train_imagenet_distributed", ["image_classify/evaluate_imagenet"], "imagenet_1k_val/val",
        {"uniq_id", "answer"},
    ),
    "gigaword": ("gigaword/train_gigaword", ["gigaword/evaluate_gigaword"], "gigaword/test", {"hyp", "ref"}),
    **{
        name: (f"glue/train_{name}", ["glue/evaluate_glue", name], f"glue/{name}/dev", {"hyp", "ref"})
        for name in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")
    },
}  # fmt: skip
QUICK = ["--max-epoch=1", "--max-update=2", "--batch-size=4", "--update-freq=1", "--log-interval=1", "--cpu"]
METRICS = {
    "caption": "cider", "vqa_gen": "vqa_score", "snli_ve": "snli_score", "gigaword": "rougeL_f1", "cola": "mcc",
    "refcoco": "score", "image_classify": "score",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Environment of the scripts, with demo data of all tasks."""
    folder = tmp_path_factory.mktemp("world")
    assert build_demo([str(folder / "data"), f"--train={ROWS}", "--val=5", f"--test={TEST_ROWS}", "--size=48"]) == 0
    paths = {"DATA_DIR": folder / "data", "OUTPUT_DIR": folder / "out", "RESULTS_DIR": folder / "results"}
    settings = {"DRY_RUN": "1", "SIZE": "demo", "GPUS_PER_NODE": "1", "OFA_PYTHON": sys.executable, "MAX_EPOCHS": "1"}
    return {**os.environ, **{name: str(path) for name, path in paths.items()}, **settings}


def commands(script, *args, env):
    """Argument lists of what a run script would start."""
    path = str(ROOT / "run_scripts" / f"{script}.sh")
    output = subprocess.run(["sh", path, *args], env=env, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line)[2:] for line in output.splitlines()]


@pytest.fixture(scope="module")
def trained(world):
    """Task -> its checkpoint after two updates and the log of its training; trained at the first call."""

    @cache
    def train_task(task):
        script = TASKS[task][0]
        more = ["--save-interval=1"] if script.startswith("glue") else []
        (argv,) = commands(script, *QUICK, *more, env=world)
        cfg = train.parse_args(argv)
        train.main(argv)
        return Path(cfg.checkpoint.save_dir) / "checkpoint_last.pt", Path(cfg.common.log_file)

    return train_task


@pytest.fixture(scope="module")
def evaluation(world, trained):
    """(task, *flags) -> argument list of what its evaluation script starts for the split in TASKS."""

    def argv_of(task, *flags):
        script, *args = TASKS[task][1]
        env = {**world, "CHECKPOINT": str(trained(task)[0])}
        subset = f"--gen-subset={TASKS[task][2].split('/')[-1]}"
        return next(argv for argv in commands(script, *args, *flags, "--cpu", env=env) if subset in argv)

    return argv_of


@pytest.fixture(scope="module")
def scored(world, evaluation):
    """Task -> records with scores and metrics of an evaluation in this process."""

    @cache
    def evaluate_task(task):
        evaluate.main(evaluation(task, "--with-scores"))
        return results(world, task)

    return evaluate_task


def results(env, task):
    """Records and metrics that the last evaluation of a task wrote."""
    stem = f"{env['RESULTS_DIR']}/{TASKS[task][2]}"
    return [json.loads(Path(f"{stem}_{kind}.json").read_text()) for kind in ("predict", "scores")]


@pytest.mark.parametrize("task", TASKS)
def test_validation_logs_the_metric(task, trained):
    text = trained(task)[1].read_text()
    assert f"| {METRICS.get(task, 'acc')} " in text and "valid on 'valid' subset" in text and "nan" not in text


@pytest.mark.parametrize("task", TASKS)
def test_every_row_is_answered_with_a_confidence(task, scored, evaluation):
    records, scores = scored(task)
    rows = Path(evaluation(task)[0]).read_text().splitlines()
    assert len(records) == len(rows) and scores
    for record in records:
        assert record.keys() > TASKS[task][3]
        assert 0 < record["probability"] <= 1 if "probability" in record else record["log_prob"] <= 0


def test_beam_search_for_answers_of_impossible_length_is_one_sentence(evaluation, tmp_path, capsys):
    argv = evaluation("vqa_gen", "--beam-search-vqa-eval", "--beam=3", f"--results-path={tmp_path}", "--min-len=90")
    with pytest.raises(SystemExit) as caught:
        evaluate.main([word for word in argv if word != "--ema-eval"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "Traceback" not in error
    assert "No answer of the closed set of" in error and "--min-len" in error and "--max-len-b" in error


def test_two_processes_write_the_same_to_the_digit_and_pass_the_check(world, scored, evaluation, tmp_path):
    expected = {task: scored(task) for task in TASKS}
    (tmp_path / "commands.json").write_text(json.dumps([evaluation(task) for task in TASKS]))
    run("tests/tasks/evaluate_many.py", tmp_path / "commands.json", processes=2)
    for task, (records, scores) in expected.items():
        plain = [{name: record[name] for name in record if name in TASKS[task][3]} for record in records]
        assert results(world, task) == [plain, scores], task
        evaluate.main(evaluation(task, f"--check-submission={world['RESULTS_DIR']}/{TASKS[task][2]}_predict.json"))


def test_a_wrong_submission_is_refused(world, scored, evaluation, tmp_path, capsys):
    for name, change, words in (
        ("short", lambda records: records[1:], "7 are needed"),
        ("order", lambda records: records[::-1], "the data file has"),
        ("text id", lambda records: [{**r, "question_id": str(r["question_id"])} for r in records], "of type int"),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(change(scored("vqa_gen")[0])))
        with pytest.raises(SystemExit):
            evaluate.main(evaluation("vqa_gen", f"--check-submission={path}"))
        assert words in capsys.readouterr().err
