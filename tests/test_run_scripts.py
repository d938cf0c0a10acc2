"""Every run script, dry: its command is the released script's, from any folder, with sh and bash, in every size.

`tests/golden/released_commands.py` holds the command lines of the released scripts: ours are the same flag by flag, and
the real parser reads both.
"""

import ast
import os
import shlex
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from released_commands import GLUE_GRIDS, RECIPES, SWITCHES

import evaluate
import train

ROOT = Path(__file__).parents[1]
NOT_RUNS = (
    "lib.sh",
    "quickstart.sh",
    "demo_all.sh",
    "test.sh",
    "renew_constraints.sh",
    "pretrain_ofa_demo.sh",
    "demo_stage2.sh",
    "demo_codes.sh",
)
SCRIPTS = {
    path.name: path
    for path in sorted(ROOT.glob("run_scripts/**/*.sh"))
    if path.parent.name != "sizes" and path.name not in NOT_RUNS
}
SIZES = sorted(path.stem for path in ROOT.glob("run_scripts/sizes/*.sh"))
TASKS = {"vqa": ("vqa_gen",), "pretraining": ("unify_task",), "glue": tuple(GLUE_GRIDS)}  # not the folder's name
ARGUMENTS = {  # of scripts that do nothing without
    "train_glue.sh": ("rte",),
    "evaluate_glue.sh": ("rte",),
    "evaluate_vqa_unconstrained.sh": ("test", "../../checkpoints/free.pt"),
}


@cache
def printed(name, *args, shell="sh", cwd=ROOT, **env):
    """Standard output of a dry run with 8 GPUs in half precision, unless the environment says else."""
    script = name if cwd == SCRIPTS[name].parent else str(SCRIPTS[name])
    done = subprocess.run(
        [shell, script, *(args or ARGUMENTS.get(name, ()))],
        cwd=cwd,
        env={**os.environ, "DRY_RUN": "1", "OFA_PYTHON": "python", "GPUS_PER_NODE": "8", "PRECISION": "fp16", **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def dry_run(name, *args, **options):
    """Printed commands that start train.py or evaluate.py, as lists of words."""
    lines = [shlex.split(line) for line in printed(name, *args, **options).splitlines()]
    return [words for words in lines if program(words)]


def program(words):
    """Where the started program stands in a command; 0 for other commands."""
    ours = (str(ROOT / "train.py"), str(ROOT / "evaluate.py"))
    return next((i for i, word in enumerate(words) if word in ours), 0)


@cache
def parse_words(is_training, words):
    return (train if is_training else evaluate).parse_args(words)


def parse(words):
    """The configuration of a printed command."""
    start = program(words)
    return parse_words(words[start].endswith("train.py"), tuple(words[start + 1 :]))


def port(words):
    return next(int(word.split("=")[1]) for word in words if word.startswith("--master_port="))


def flags(words, folder):
    """Flag -> value, the last one given; our paths as the released scripts spell them from their folder."""
    start = program(words)
    found = {"data": words[start + 1]} | dict((word + "=").split("=", 1) for word in words[start + 2 :])
    found = {
        name: value.removesuffix("=").replace(f"{folder}/", "./").replace(f"{ROOT}/", "../../")
        for name, value in found.items()
    }
    if "--arch" in found:
        found["--save-dir"] = found["--save-dir"].replace(f"/{found['--arch']}_", "/")
    overrides = ast.literal_eval(found.pop("--model-overrides", "{}"))
    if "--zero-shot" in found:  # then they only reach the model
        return found
    return found | {f"override {name}": value for name, value in overrides.items()}


def test_scripts_are_found():
    assert set(RECIPES) | {"train_glue.sh", "evaluate_glue.sh"} <= set(SCRIPTS)
    assert {"demo", "tiny", "medium", "base", "large", "huge"} == set(SIZES)


@pytest.mark.parametrize("name", RECIPES)
def test_command_is_the_released_one(name):
    folder, (expected_port, lines) = SCRIPTS[name].parent, RECIPES[name]
    commands = dry_run(name)
    if folder.name == "glue":
        commands = commands[:1]
    for words, line in zip(commands, lines, strict=True):
        ours, released = flags(words, folder), flags(["", *line.split(" ")], folder)
        assert port(words) == expected_port
        if name.startswith("train"):
            log_file = ours.pop("--log-file")
            save_dir = next(word for word in words if word.startswith("--save-dir=")).replace(str(folder), ".")
            assert log_file == save_dir.removeprefix("--save-dir=").replace("checkpoints/", "logs/") + ".log"
        assert ours.pop("--num-workers") == "2" and released.pop("--num-workers") == "0"  # rows are random access
        assert ours == released


@pytest.mark.parametrize("name", {(SCRIPTS[name].parent, name[:5]): name for name in RECIPES}.values())
def test_released_command_parses(name):
    parser = train if name.startswith("train") else evaluate
    cfg = parser.parse_args(["--local_rank=0", *RECIPES[name][1][0].split(" ")])
    assert cfg.dataset.num_workers == 0 and cfg.common.fp16
    assert cfg.task._name in TASKS.get(SCRIPTS[name].parent.name, (SCRIPTS[name].parent.name,))


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_runs_with_both_shells_from_any_folder_and_passes_flags_through(name):
    commands = dry_run(name)
    assert commands or not name.startswith(("train", "evaluate", "pretrain"))
    assert len(SCRIPTS[name].read_text().splitlines()) <= 30
    own = SCRIPTS[name].parent
    assert printed(name, shell="bash", cwd=own) == printed(name)
    flags = [*ARGUMENTS.get(name, ()), "--user-flag=a  b"]
    for words, plain in zip(dry_run(name, *flags), commands, strict=True):
        assert words == [*plain[:-1], "--user-flag=a  b", plain[-1]] and plain[-1] == "--fp16"


@pytest.mark.parametrize("name", SCRIPTS)
def test_task_switches_and_optimization(name):
    folder = SCRIPTS[name].parent.name
    for words in dry_run(name)[:1]:
        cfg = parse(words)
        assert cfg.task._name in TASKS.get(folder, (folder,))
        if not words[program(words)].endswith("train.py"):
            continue
        for switch in SWITCHES.split(" "):
            assert cfg.model[switch.removeprefix("--").replace("-", "_")] is True, switch
        pretraining, rewards = folder == "pretraining", "stage2" in name
        assert cfg.optimizer._name == "adam" and ast.literal_eval(str(cfg.optimizer.adam_betas)) == (0.9, 0.999)
        assert cfg.optimizer.adam_eps == 1e-8 and cfg.optimizer.weight_decay == 0.01
        assert cfg.optimization.clip_norm == (5.0 if pretraining else 1.0)
        assert cfg.lr_scheduler._name == "polynomial_decay" and cfg.lr_scheduler.power == 1.0
        assert cfg.model.dropout == (0.0 if rewards else 0.1) and cfg.model.attention_dropout == 0.0
        assert cfg.model.resnet_drop_path_rate == 0.0 and cfg.task.num_bins == 1000
        assert cfg.common.log_format == "simple" and cfg.common.log_interval == 10 and cfg.common.seed == 1
        assert cfg.dataset.fixed_validation_seed == 7 and cfg.common.fp16
        assert cfg.checkpoint.reset_optimizer and cfg.checkpoint.reset_dataloader and cfg.checkpoint.reset_meters
        assert pretraining or cfg.checkpoint.maximize_best_checkpoint_metric
        assert pretraining or cfg.distributed_training.find_unused_parameters


@pytest.mark.parametrize("name", [name for name, path in SCRIPTS.items() if "\nofa_size " in path.read_text()])
def test_script_in_every_size(name):
    commands = {size: dry_run(name, SIZE=size)[:1] for size in SIZES}
    for size, recipe in (("tiny", "base"), ("medium", "base"), ("huge", "large")):
        if "evaluate_caption" not in name:
            same = [[word.replace(f"_{size}", f"_{recipe}") for word in words] for words in commands[size]]
            assert same == commands[recipe]
    for words in commands["demo"]:
        cfg = parse(words)
        is_training = words[program(words)].endswith("train.py")
        if is_training:
            assert cfg.model._name == "ofa_demo" and not cfg.model.freeze_encoder_embedding
            assert cfg.model.encoder_drop_path_rate == 0.0 and cfg.dataset.num_workers == 0
        if is_training or cfg.evaluation.zero_shot:
            assert cfg.task.patch_image_size == 48 and cfg.task.bpe_dir == str(ROOT / "digits/BPE")
            assert (cfg.task.num_bins, cfg.task.code_dict_size) == (65, 1024)


@pytest.mark.parametrize("task", GLUE_GRIDS)
def test_grid_of_glue(task):
    commands, grid = dry_run(f"train_{task}.sh"), list(product(*GLUE_GRIDS[task]))
    assert len(commands) == len(grid)
    for words, (epochs, lr, frequency) in zip(commands, grid, strict=True):
        changed = [word for word in words if word not in commands[0]]
        own = {f"--max-epoch={epochs}", f"--lr={lr}", f"--update-freq={frequency}"}
        assert own <= set(words) and {word.split("=")[0] for word in changed} <= {
            "--max-epoch", "--lr", "--update-freq", "--save-dir", "--log-file",
        }  # fmt: skip
        assert f"/glue/checkpoints/{task}/ofa_large_{epochs}_{lr}_{frequency}" in "".join(words)
    (one,) = dry_run(f"train_{task}.sh", MAX_EPOCHS="7", LRS="6e-5", UPDATE_FREQS="2")
    assert one == commands[grid.index((7, "6e-5", 2))]


def test_evaluation_of_glue_and_unknown_tasks():
    (words,) = dry_run("evaluate_glue.sh", "cola", "--batch-size=3")
    cfg = parse(words)
    assert cfg.task._name == "cola" and cfg.dataset.batch_size == 3 and cfg.dataset.gen_subset == "dev"
    assert ast.literal_eval(cfg.common_eval.model_overrides)["selected_cols"] == "1,2"
    assert cfg.common_eval.path == str(ROOT / "checkpoints/cola_large_best.pt")
    done = subprocess.run(["sh", str(SCRIPTS["train_glue.sh"]), "wnli"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("'wnli' is not a GLUE task: choose cola, mnli")


@pytest.mark.parametrize(
    "name", [name for name in SCRIPTS if name.startswith("evaluate_vqa")] + ["evaluate_snli_ve.sh"]
)
def test_split_is_the_first_argument(name, tmp_path):
    env = {"CHECKPOINT": str(tmp_path / "mine.pt"), "RESULTS_DIR": str(tmp_path)}
    (words,) = dry_run(name, "test", "--seed=3", **env)
    start = program(words)
    assert words[start + 1].endswith("_test.tsv") and "--gen-subset=test" in words and "--seed=3" in words
    assert f"--path={tmp_path}/mine.pt" in words and any(w.startswith(f"--results-path={tmp_path}/") for w in words)
    (words,) = dry_run(name, "--seed=3", **env)
    assert words[start + 1].endswith("_dev.tsv" if "snli" in name else "_val.tsv")


def test_checkpoint_of_free_answers_must_be_named():
    done = subprocess.run(["sh", str(SCRIPTS["evaluate_vqa_unconstrained.sh"]), "val"], capture_output=True, text=True)
    assert done.returncode == 2 and "name the checkpoint to evaluate" in done.stderr


def test_some_splits_of_refcoco():
    (words,) = dry_run("evaluate_refcoco.sh", SUBSETS="refcocog_test", CHECKPOINT="/tmp/mine.pt")
    assert "--path=/tmp/mine.pt" in words and "--gen-subset=refcocog_test" in words


def test_users_flags_come_last_and_keep_their_blanks():
    (words,) = dry_run("train_caption_stage1.sh", "--lr=3e-5", '--eval-args={"beam": 2}')
    assert parse(words).optimization.lr == [3e-5] and parse(words).task.eval_args == '{"beam": 2}'


@pytest.mark.parametrize("name", ["train_vqa_distributed.sh", "evaluate_vqa_base_allcand_distributed.sh"])
def test_clusters_come_from_the_environment(name):
    env = {"GPUS_PER_NODE": "8", "WORKER_CNT": "4", "RANK": "2", "MASTER_ADDR": "host0", "MASTER_PORT": "2345"}
    (words,) = dry_run(name, PRECISION="bf16", **env)
    assert words[1 : program(words)] == [
        "-m", "torch.distributed.run", "--nproc_per_node=8", "--nnodes=4", "--node_rank=2", "--master_addr=host0",
        "--master_port=2345",
    ]  # fmt: skip
    assert "--bf16" in words and parse(words).common.bf16


def test_one_process_needs_no_launcher():
    (words,) = dry_run("train_vqa_distributed.sh", GPUS_PER_NODE="1", PRECISION="fp32")
    assert program(words) == 1 and words[-1] == "--distributed-world-size=1" and "--fp16" not in words


def test_runs_have_names_of_their_own(tmp_path):
    (words,) = dry_run("train_refcocog.sh", OUTPUT_DIR=str(tmp_path), RUN_SUFFIX="_mine", NUM_WORKERS="5")
    cfg = parse(words)
    assert cfg.checkpoint.save_dir == f"{tmp_path}/refcocog_checkpoints/ofa_large_10_3e-5_512_mine"
    assert cfg.common.log_file == f"{tmp_path}/refcocog_logs/ofa_large_10_3e-5_512_mine.log"
    assert cfg.dataset.num_workers == 5


def test_a_started_run_goes_on_instead_of_restoring_the_released_file(tmp_path):
    (fresh,) = dry_run("train_caption_stage1.sh", OUTPUT_DIR=str(tmp_path))
    save_dir = Path(next(word for word in fresh if word.startswith("--save-dir=")).removeprefix("--save-dir="))
    assert "--reset-optimizer" in fresh and not save_dir.exists()
    save_dir.mkdir(parents=True)
    (save_dir / "checkpoint_last.pt").touch()
    printed.cache_clear()
    (again,) = dry_run("train_caption_stage1.sh", OUTPUT_DIR=str(tmp_path))
    assert "--reset-optimizer" not in again and parse(again).checkpoint.restore_file == "checkpoint_last.pt"


@pytest.mark.parametrize("there", [False, True])
def test_captions_without_references_are_not_scored(there, tmp_path):
    (tmp_path / "caption_data").mkdir()
    if there:
        (tmp_path / "caption_data/test_caption_coco_format.json").touch()
    (tmp_path / "python").write_text('#!/bin/sh\necho "ran $*"\n')
    (tmp_path / "python").chmod(0o755)
    settings = {"OFA_PYTHON": str(tmp_path / "python"), "DATA_DIR": str(tmp_path), "GPUS_PER_NODE": "1"}
    script = str(SCRIPTS["evaluate_caption.sh"])
    done = subprocess.run(["sh", script], env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0 and ("coco_eval.py" in done.stdout) == there, done.stderr
    assert ("test_caption_coco_format.json: the captions are not scored." in done.stdout) != there


def test_unknown_size_is_one_sentence():
    script = str(SCRIPTS["evaluate_caption.sh"])
    done = subprocess.run(["sh", script], env={**os.environ, "SIZE": "giant"}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("SIZE=giant is unknown: choose base demo huge")


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name.startswith("evaluate")])
@pytest.mark.parametrize("odd", ["it's", 'a "b" \\t', "'"])
def test_paths_may_have_apostrophes_quotes_and_backslashes(name, odd, tmp_path):
    names = ("DATA_DIR", "BPE_DIR", "CHECKPOINT_DIR", "RESULTS_DIR", "VQGAN_DIR")
    commands = dry_run(name, **{folder: f"{tmp_path}/{odd}/{folder}" for folder in names})
    assert commands
    for words in commands:
        start = program(words)
        overrides = ast.literal_eval(next(w for w in words if w.startswith("--model-overrides=")).partition("=")[2])
        assert overrides["data"] == words[start + 1] and words[start + 1].startswith(f"{tmp_path}/{odd}/DATA_DIR/")
        assert overrides["bpe_dir"] == f"{tmp_path}/{odd}/BPE_DIR"
        for key, value in overrides.items():
            assert not key.endswith(("_path", "_file")) or not value or value.startswith(f"{tmp_path}/{odd}/"), key
    assert evaluate.parse_args(commands[0][program(commands[0]) + 1 :]).task.data == commands[0][start + 1]


@pytest.mark.parametrize("name", ["evaluate_caption.sh", "train_cola.sh", "demo_codes.sh"])
def test_a_script_without_any_set_up_says_what_to_run(name, tmp_path):
    (tmp_path / "python").symlink_to("/bin/false")
    path = next(ROOT.glob(f"run_scripts/**/{name}"))
    env = {**os.environ, "OFA_PYTHON": str(tmp_path / "python"), "OUTPUT_DIR": str(tmp_path), "GPUS_PER_NODE": "1"}
    done = subprocess.run(["sh", str(path)], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    assert "has no torch and fairseq: run 'bash " in done.stderr and "quickstart.sh" in done.stderr
