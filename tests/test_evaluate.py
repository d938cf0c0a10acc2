"""evaluate.py: ids as servers want them, test sets without references, and every flag that its parser has."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from fairseq import options

import data.validate as validate
import evaluate
from models.generation import GenerationConfig
from ofa_module import evaluation_flags
from tasks.gigaword import GigawordTask
from tests.programs import ROOT
from tests.sources import write_source
from utils.errors import UserError

CASES, TSV = ROOT / "tests" / "cases", ROOT / "tests" / "golden" / "tsv"
ANSWERS = '{"yes": 0, "zero": 1, "one": 2}'


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, save_small_network):
    """Task -> a small random model that was trained for it, by its own account."""
    folder = tmp_path_factory.mktemp("evaluate")

    @cache
    def save(task, **own):
        path = folder / f"{task}{save.cache_info().misses}.pt"
        return save_small_network(path, **{"_name": task, "bpe_dir": str(ROOT / "utils/BPE"), **own})

    return save


@pytest.fixture
def run(checkpoint, tmp_path):
    """Evaluates a file for a task; its predictions and scores."""

    def start(task, data, cols, *flags, **own):
        evaluate.main([
            str(data), f"--path={checkpoint(task, **own)}", f"--task={task}", f"--selected-cols={cols}", "--cpu",
            "--num-workers=0", "--batch-size=4", f"--results-path={tmp_path}", *flags,
        ])  # fmt: skip
        return [json.loads((tmp_path / f"test_{kind}.json").read_text()) for kind in ("predict", "scores")]

    return start


def check(task, file, data, cols, capfd, *flags):
    """Exit code and what is said by --check-submission."""
    code = 0
    try:
        evaluate.main([str(data), f"--task={task}", f"--selected-cols={cols}", f"--bpe-dir={ROOT}/utils/BPE", "--cpu",
                       f"--check-submission={file}", *flags])  # fmt: skip
    except SystemExit as stop:
        code = stop.code
    said = capfd.readouterr()
    return code, said.out + said.err


SHORT = ["--beam=1", "--max-len-b=3"]


@pytest.mark.parametrize("cols", ["1,4,2", "1,4"])
def test_captions_of_a_test_set_need_no_references(cols, run, capfd, tmp_path):
    (tmp_path / "test_scores.json").write_text('{"CIDEr": 1.0}')  # of an earlier run
    records, scores = run("caption", CASES / "cap_norefs.tsv", cols, *SHORT, eval_cider=True)
    assert [record["image_id"] for record in records] == list(range(300000, 300006)) and scores == {}
    assert "6 of 6 rows have no reference: their predictions are written" in capfd.readouterr().out


def test_rows_with_a_reference_are_scored_beside_those_without(run, capfd, tmp_path):
    rows = [line.split("\t") for line in (CASES / "cap_norefs.tsv").read_text().splitlines()]
    rows[2][2] = "a zero"
    (tmp_path / "some.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    records, scores = run("caption", tmp_path / "some.tsv", "1,4,2", *SHORT)
    assert len(records) == 6 and scores
    assert "5 of 6 rows have no reference: the scores are of the others" in capfd.readouterr().out


# task -> golden file, columns with the reference, columns without, column of the reference, options of the task
UNLABELED = {
    "vqa_gen": ("vqa_gen/vqa_val.tsv", "0,5,2,3,4", "0,5,2", 3, {"ans2label_dict": ANSWERS}),
    "refcoco": ("refcoco/refcoco_val.tsv", "0,4,2,3", "0,4,2", 3, {}),
    "snli_ve": ("snli_ve/snli_ve_dev.tsv", "0,2,3,4,5", "0,2,3,4", 5, {}),
    "image_classify": ("image_classify/imagenet_1k_val.tsv", "0,2", "0", 2, {"ans2label_dict": ANSWERS}),
    "gigaword": ("gigaword/dev.tsv", "0,1", "0", 1, {}),
    "cola": ("cola/cola_dev.tsv", "1,2", "1", 2, {}),
    "rte": ("rte/rte_dev.tsv", "1,2,3", "1,2", 3, {}),
}


@pytest.mark.parametrize("task", UNLABELED)
def test_every_task_answers_rows_without_a_reference(task, run, tmp_path):
    name, cols, without, column, own = UNLABELED[task]
    rows = [line.split("\t") for line in (TSV / name).read_text(encoding="utf-8").splitlines()]
    blank = [[*row[:column], "", *row[column + 1 :]] for row in rows]
    for chosen, content in ((cols, blank), (without, rows)):
        (tmp_path / "rows.tsv").write_text("".join("\t".join(row) + "\n" for row in content), encoding="utf-8")
        flags = SHORT if task == "gigaword" else []
        records, scores = run(task, tmp_path / "rows.tsv", chosen, *flags, **own)
        assert len(records) == len(rows) and scores == {}
    assert run(task, TSV / name, cols, *flags, **own)[1]  # with references there are scores


def test_compile_reaches_every_network(checkpoint, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate, "compile_layers", seen.append)
    argv = ["x.tsv", f"--path={checkpoint('caption')}", "--task=caption", "--cpu"]
    for flags in ([], ["--compile"]):
        cfg = evaluate.parse_args([*argv, *flags])
        evaluation_flags.check_given(cfg, cfg.given)
        model = evaluate._load(cfg.common_eval.path, {}, cfg)
    assert seen == [model]


def test_question_ids_that_are_texts(run, capfd, tmp_path):
    data, cols = CASES / "vqa_string_ids.tsv", "0,5,2,3,4"
    records, scores = run("vqa_gen", data, cols, ans2label_dict=ANSWERS)
    assert [record["question_id"] for record in records] == [f"synpic{row}_0" for row in range(4)]
    assert scores["vqa_score"] >= 0
    code, said = check("vqa_gen", tmp_path / "test_predict.json", data, cols, capfd)
    assert code == 2 and "'synpic0_0' is not an integer, which the VQA server (EvalAI) needs" in said
    floats = (CASES / "vqa_string_ids.tsv").read_text().replace("synpic", "20").replace("_0\t", ".0\t")
    (tmp_path / "floats.tsv").write_text(floats)  # as pandas writes them
    records, _ = run("vqa_gen", tmp_path / "floats.tsv", cols, ans2label_dict=ANSWERS)
    assert [record["question_id"] for record in records] == [200, 201, 202, 203]
    assert check("vqa_gen", tmp_path / "test_predict.json", tmp_path / "floats.tsv", cols, capfd)[0] == 0


@pytest.mark.parametrize("ids, said", [("texts", True), ("numbers", False)])
def test_validate_speaks_of_ids_that_no_server_takes(ids, said, tmp_path, capsys):
    rows = (CASES / "vqa_string_ids.tsv").read_text()
    (tmp_path / "rows.tsv").write_text(rows if ids == "texts" else rows.replace("synpic", "1").replace("_0\t", ".0\t"))
    assert validate.main(["vqa_gen", str(tmp_path / "rows.tsv"), "--workers=0"]) == 0
    told = "4 ids are not integers, such as 'synpic0_0': the VQA server (EvalAI) does not take them"
    assert (told in capsys.readouterr().out) == said


def test_the_check_of_captions_reads_numbers_and_texts_and_says_what_the_server_wants(tmp_path, capfd):
    data, cols, file = CASES / "cap_norefs.tsv", "1,4,2", tmp_path / "predict.json"
    for wanted, words, ids in (
        (0, "is complete: 6 records", [300000 + row for row in range(6)]),
        (0, "the COCO caption server wants 'image_id' as a number", [str(300000 + row) for row in range(6)]),
        (2, "the id is 7, the data file has '300001' there", [300000, 7, 300002, 300003, 300004, 300005]),
        (2, "must be there, of type int", [300000.5, 300001, 300002, 300003, 300004, 300005]),
    ):
        file.write_text(json.dumps([{"image_id": number, "caption": "a"} for number in ids]))
        code, said = check("caption", file, data, cols, capfd)
        assert code == wanted and words in said and ("server" in said) == (type(ids[0]) is str)


def test_coco_itself_reads_the_captions(run, tmp_path):
    from pycocotools.coco import COCO

    records, _ = run("caption", CASES / "cap_norefs.tsv", "1,4,2", *SHORT)
    coco = COCO()
    coco.dataset = {"images": [{"id": 300000 + row} for row in range(6)], "annotations": []}
    coco.createIndex()
    assert sorted(coco.loadRes(str(tmp_path / "test_predict.json")).getImgIds()) == [r["image_id"] for r in records]


TASKS = ("caption", "vqa_gen", "refcoco", "snli_ve", "image_classify", "image_gen", "gigaword", "rte")
VALUES = {
    "selected_cols": "3,1,0", "bpe": "bert", "constraint_range": "7,9", "ans2label_dict": '{"a": 0}',
    "prompt_type": "src", "val_inference_type": "beamsearch", "eval_clip_method": "ii_sim", "log_format": "json",
    "bpe_dir": "my/bpe", "user_dir": str(ROOT / "ofa_module"), "model_overrides": "{'max_src_length': 5}",
    "lr": "[0.1]", "force_anneal": "3", "path": "mine.pt", "task": None, "seed": "5",
}  # fmt: skip
REGISTRIES = ("criterion", "optimizer", "lr_scheduler", "tokenizer", "scoring")  # which add flags of their own


def actions_of(task):
    """Everything that the parser of a task has: name -> action."""
    parser = evaluate._parser()
    options.parse_args_and_arch(parser, ["x.tsv", f"--task={task}"])
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def words_of(action, task):
    """The action on a command line, with another value than its default."""
    name = action.dest
    if name == "data":
        return ["mine.tsv"]
    flag = max(action.option_strings, key=len)
    if name == "task":
        return [f"--task={task}"]
    if action.nargs == 0:
        return [flag]
    if name in VALUES:
        return [f"{flag}={VALUES[name]}"]
    if action.choices:
        return [f"{flag}={next(choice for choice in action.choices if choice != action.default)}"]
    whole = isinstance(action.default, int) or action.type is int
    return [f"{flag}={action.default + 1 if whole and action.default is not None else 3}"]


@pytest.mark.parametrize("task", TASKS)
def test_every_flag_of_the_parser_wins_or_is_refused(task):
    """All at once on one line, then each by itself against a checkpoint that says otherwise."""
    actions = actions_of(task)
    alone = {"tpu", "bf16", "memory_efficient_bf16", "check_submission", *REGISTRIES}
    words = [word for name, action in actions.items() if name not in alone for word in words_of(action, task)]
    cfg = evaluate.parse_args(words)
    assert set(cfg.given) == actions.keys() - alone
    generation, refused = {f.name for f in fields(GenerationConfig)}, set()
    for name in actions:
        try:
            evaluation_flags.check_given(cfg, [name])
        except UserError as error:
            assert str(error).startswith(f"{evaluation_flags.flag(name)} is not supported by evaluate.py: ")
            refused.add(name)
            continue
        if name in cfg.task and name != "data":
            cfg.given = [name]
            cfg.evaluation.beam_search_vqa_eval = cfg.evaluation.zero_shot = False
            config, given = evaluate._task_config(cfg, {"cfg": {"task": {"_name": task}}}, "mine.pt", {name: None})
            assert given == {name: cfg.task[name]} and config[name] == cfg.task[name] != actions[name].default
        elif name in generation - {"zero_shot"}:
            assert cfg.generation[name] != actions[name].default
        else:
            assert name in evaluation_flags.USED or name in cfg.evaluation
    assert {"max_tokens", "save_dir", "constraints", "lm_path", "lm_weight", "nbest", "num_shards"} <= refused
    used = "selected_cols skip_bad_rows max_src_length valid_batch_size val_inference_type unconstrained_training"
    assert not refused & {*used.split(" "), "max_object_length", "beam", "batch_size", "log_interval"}


def test_what_is_said_to_be_used_is_read_somewhere():
    texts = "".join((ROOT / name).read_text() for name in ("evaluate.py", "ofa_module/cli.py"))
    fairseq = Path(options.__file__).parent
    texts += (fairseq / "distributed/utils.py").read_text() + (fairseq / "options.py").read_text()
    for name in evaluation_flags.USED - {"data", "task", "user_dir"}:
        assert f".{name}" in texts or f'"{name}"' in texts, name


def evaluated(task, own, *flags):
    """What the flags on a line make of a checkpoint of a task: its options, and the task itself."""
    cfg = evaluate.parse_args(["x.tsv", f"--task={task}", f"--bpe-dir={ROOT}/digits/BPE", "--code-dict-size=0", *flags])
    evaluation_flags.check_given(cfg, cfg.given)
    overrides = {"selected_cols": "0,1", "ans2label_file": "gone.pkl"} if task == "vqa_gen" else {}
    stored = {"_name": task, "code_dict_size": 0, **own}
    return cfg, evaluate._task_config(cfg, {"cfg": {"task": stored}}, "mine.pt", overrides)[0]


@pytest.mark.parametrize("value, kind", [(5, "a text"), ([0, 1], "a text"), ("x", "an integer"), (2.5, "an integer"),
                                         ("maybe", "True or False")])  # fmt: skip
@pytest.mark.parametrize("place", ["checkpoint", "overrides", "zero-shot"])
def test_options_of_another_type_are_refused(value, kind, place):
    name = {"a text": "selected_cols", "an integer": "max_src_length", "True or False": "skip_bad_rows"}[kind]
    cfg = evaluate.parse_args(["x.tsv", "--task=caption", f"--bpe-dir={ROOT}/digits/BPE"])
    cfg.evaluation.zero_shot = place == "zero-shot"
    stored = {"_name": "caption", **({name: value} if place == "checkpoint" else {})}
    overrides = {} if place == "checkpoint" else {name: value}
    source = "mine.pt" if place == "checkpoint" else "--model-overrides"
    with pytest.raises(UserError, match=re.escape(f"{source}: {name} cannot be {value!r}, it must be {kind}.")):
        evaluate._task_config(cfg, {"cfg": {"task": stored}}, "mine.pt", overrides)


def test_a_flag_wins_over_the_overrides_of_a_script(caplog):
    _, config = evaluated("vqa_gen", {}, "--selected-cols=0,5,2,3,4", f"--ans2label-dict={ANSWERS}")
    assert config.selected_cols == "0,5,2,3,4" and config.ans2label_dict == ANSWERS and config.ans2label_file is None
    assert "selected_cols: '0,5,2,3,4' on the command line overrides --model-overrides." in caplog.text
    assert evaluated("vqa_gen", {})[1].selected_cols == "0,1"
    assert evaluated("vqa_gen", {"val_inference_type": "beamsearch"})[1].val_inference_type == "allcand"
    assert evaluated("vqa_gen", {}, "--beam-search-vqa-eval")[1].val_inference_type == "beamsearch"


def test_without_a_checkpoints_task_overrides_count_where_no_flag_does():
    overrides = {"selected_cols": "0,1", "bpe_dir": "other", "dropout": 0.0}
    cfg = evaluate.parse_args(["x.tsv", "--task=refcoco", "--zero-shot", "--bpe-dir=mine"])
    config, given = evaluate._task_config(cfg, {}, "mine.pt", overrides)
    assert (config.selected_cols, config.bpe_dir) == ("0,1", "mine")
    assert given == {"data": "x.tsv", "bpe_dir": "mine"}
    with pytest.raises(UserError, match="neither the task 'refcoco' nor the model has an option 'bpedir'"):
        evaluate._task_config(cfg, {}, "mine.pt", {"bpedir": "other"})


@pytest.mark.parametrize(
    "task, flags, message",
    [
        ("caption", ["--beam-search-vqa-eval"], "--beam-search-vqa-eval is not an option of the task 'caption'"),
        ("vqa_gen", ["--ans2label-file=a", "--ans2label-dict={}"], "--ans2label-dict cannot be combined"),
        ("vqa_gen", ["--beam-search-vqa-eval", "--val-inference-type=allcand"], "--val-inference-type cannot be"),
        ("caption", ["--max-tokens=3"], "--max-tokens is not supported by evaluate.py: batches are counted in rows"),
        ("vqa_gen", ["--uses-ema"], "--uses-ema is not supported by evaluate.py: pass --ema-eval"),
        ("vqa_gen", ["--eval-args={}"], "--eval-args is not supported by evaluate.py: pass options of generation"),
        ("caption", ["--lm-path=x"], "--lm-path is not supported by evaluate.py: leave it out."),
        ("caption", ["--lm-weight=0.5"], "--lm-weight is not supported by evaluate.py: leave it out."),
    ],
)
def test_flags_that_cannot_be_followed_are_one_sentence(task, flags, message):
    with pytest.raises(UserError, match=message):
        evaluated(task, {}, *flags)


def test_a_task_of_its_own_on_the_line_is_refused(run, checkpoint, capfd):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["x.tsv", f"--path={checkpoint('caption')}", "--task=vqa_gen", "--cpu", "--results-path=x"])
    assert (
        stop.value.code == 2
        and "was trained for the task 'caption': leave --task=vqa_gen out" in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    "task, cols, flag, words",
    [
        ("vqa_gen", "0,5,2,3,4", "--beam=3", "--beam is an option of beam search"),
        ("refcoco", "0,4,2,3", "--max-len-b=9", "--max-len-b is always 4 for this task"),
    ],
)
def test_options_of_generation_that_the_task_does_not_follow(task, cols, flag, words, run, capfd):
    with pytest.raises(SystemExit) as stop:
        run(
            task, CASES / "vqa_string_ids.tsv", cols, flag, **({"ans2label_dict": ANSWERS} if task == "vqa_gen" else {})
        )
    assert stop.value.code == 2 and words in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
@pytest.mark.parametrize("flags", [SHORT, ["--sampling", "--max-len-b=3", "--beam=1"]], ids=["beam", "sampling"])
def test_texts_of_similar_length_come_together_the_longest_first(kind, flags, run, monkeypatch, tmp_path):
    counts = [3, 30, 5, 1, 60, 2, 20, 4, 9]
    rows = [{"article": "word " * count, "summary": f"text {number}"} for number, count in enumerate(counts)]
    path = write_source(kind, tmp_path, rows)
    seen, evaluated = [], GigawordTask.evaluate

    def look(task, models, batch, generation):
        seen.append(batch["rows"].tolist())
        return evaluated(task, models, batch, generation)

    monkeypatch.setattr(GigawordTask, "evaluate", look)
    by_name = [] if kind == "tsv" else ["--columns=article=article"]
    records, _ = run("gigaword", path, "0,1", *flags, *by_name)
    in_file_order = "--sampling" in flags or kind == "parquet"
    assert seen == ([[0, 1, 2, 3], [4, 5, 6, 7], [8]] if in_file_order else [[4, 1, 6, 8], [2, 7, 0, 5], [3]])
    assert [record["ref"] for record in records] == [f"text {number}" for number in range(9)]


def test_bad_rows_are_skipped_and_progress_is_logged_as_flags_say(run, capfd, tmp_path):
    rows = (CASES / "cap_norefs.tsv").read_text().splitlines()
    (tmp_path / "bad.tsv").write_text("\n".join([*rows[:2], "8\t8\ta\t\t???", rows[3]]) + "\n")
    records, scores = run("caption", tmp_path / "bad.tsv", "1,4,2", *SHORT, "--skip-bad-rows", "--batch-size=1",
                          "--log-format=simple", "--log-interval=2")  # fmt: skip
    said = capfd.readouterr().out
    assert len(records) == 3 and scores["skipped_rows"] == 1 and "test:      3 / 4" in said and "2 / 4" not in said


@pytest.fixture
def stop_after(monkeypatch):
    """Stops a run at its batch of this number; what it returns counts the batches that were answered."""

    own = evaluate.found_in

    def set_stop(number):
        answered = []

        def found(*batch):
            if len(answered) == number:
                raise KeyboardInterrupt
            answered.append(batch)
            return own(*batch)

        monkeypatch.setattr(evaluate, "found_in", found)
        return answered

    return set_stop


STOPPED = {  # task -> data, columns, flags, options of the task; rows that cannot be read are among them
    "caption": (CASES / "cap_norefs.tsv", "1,4,2", [*SHORT, "--with-scores"], {"eval_cider": True}),
    "vqa_gen": (TSV / "vqa_gen/vqa_val.tsv", "0,5,2,3,4", [], {"ans2label_dict": ANSWERS}),
    "refcoco": (TSV / "refcoco/refcoco_val.tsv", "0,4,2,3", [], {}),
}


def stoppable(task, run, tmp_path):
    """A file of a task's rows, one of them unreadable, and what evaluates it."""
    data, cols, flags, own = STOPPED[task]
    rows = data.read_text(encoding="utf-8").splitlines()
    (tmp_path / "rows.tsv").write_text("\n".join([*rows, "not a row"]) + "\n", encoding="utf-8")
    flags = [*flags, "--skip-bad-rows", "--batch-size=1"]
    return lambda *more: run(task, tmp_path / "rows.tsv", cols, *flags, *more, **own)


def stopped_part(start, stop_after, number, tmp_path):
    """The file that a run leaves which is stopped at its batch of this number."""
    stop_after(number)
    with pytest.raises(SystemExit, match="130"):
        start()
    return tmp_path / "test_predict.json.parts" / "000001.jsonl"


def written(tmp_path):
    return [(tmp_path / f"test_{kind}.json").read_bytes() for kind in ("predict", "scores")]


@pytest.mark.parametrize("task", STOPPED)
def test_a_stopped_run_goes_on_with_the_rows_that_are_left(task, run, stop_after, tmp_path):
    start = stoppable(task, run, tmp_path)
    whole = stop_after(None)
    start()
    expected = written(tmp_path)
    for number in (1, len(whole) - 1):
        for path in tmp_path.glob("test_*.json"):
            path.unlink()
        part = stopped_part(start, stop_after, number, tmp_path)
        assert part.read_bytes().count(b"\n") == 1 + number and not list(tmp_path.glob("test_*.json"))
        part.write_bytes(part.read_bytes() + b'{"read": [0')  # as a kill leaves it
        rest = stop_after(None)
        start()
        assert len(rest) == len(whole) - number and written(tmp_path) == expected
        assert not part.parent.exists()


def test_what_another_run_left_is_not_used(run, stop_after, tmp_path, capfd):
    start = stoppable("refcoco", run, tmp_path)
    part = stopped_part(start, stop_after, 2, tmp_path)
    damaged = part.read_bytes() + b'{"read": [5]}\n'
    answered = stop_after(None)
    start("--seed=7")
    assert "was left by an evaluation with other files or options: it is deleted" in capfd.readouterr().out
    total = len(answered)
    part.parent.mkdir()
    part.write_bytes(damaged)
    with pytest.raises(SystemExit) as stop:
        start()
    assert stop.value.code == 2 and f"{part} is damaged: remove it" in capfd.readouterr().err
    part.unlink()
    start()
    assert len(answered) == 2 * total and not part.parent.exists()


def test_rows_that_two_runs_have_read_count_once(run, stop_after, tmp_path):
    start = stoppable("caption", run, tmp_path)
    stop_after(None)
    start()
    expected = written(tmp_path)
    part = stopped_part(start, stop_after, 3, tmp_path)
    (part.parent / "000002.jsonl").write_bytes(part.read_bytes())
    (part.parent / "000003.jsonl").mkdir()
    stop_after(None)
    start("--skip-bad-rows")
    assert written(tmp_path) == expected


def test_rows_of_another_file_are_damage(run, stop_after, tmp_path, capfd):
    start = stoppable("caption", run, tmp_path)
    part = stopped_part(start, stop_after, 1, tmp_path)
    part.write_text(part.read_text().replace('"read": [0]', '"read": [0, 9999]'))
    stop_after(None)
    with pytest.raises(SystemExit, match="2"):
        start()
    assert f"{part} is damaged" in capfd.readouterr().err


def test_a_second_evaluation_of_the_same_files_is_refused(run, tmp_path, capfd):
    script = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    lock = str(tmp_path / "test_predict.json.lock")
    first = subprocess.Popen([sys.executable, "-c", script, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    first.stdout.readline()
    start = stoppable("caption", run, tmp_path)
    with pytest.raises(SystemExit, match="2"):
        start()
    assert "another program writes these files" in capfd.readouterr().err
    first.communicate(b"\n")
    start()
    assert not list(tmp_path.glob("*.lock"))
