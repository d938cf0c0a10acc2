"""Every run script, dry: it prints a command that the real parser takes, from any folder, with sh and bash."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

import evaluate
import train

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    p for p in ROOT.glob("run_scripts/*/*.sh") if p.parent.name != "sizes" and p.name.startswith(("train", "evaluate"))
)
SIZES = sorted(p.stem for p in ROOT.glob("run_scripts/sizes/*.sh"))


def dry_run(script, *args, shell="sh", cwd=ROOT, **env):
    done = subprocess.run(
        [shell, str(script), *args],
        cwd=cwd,
        env={**os.environ, "DRY_RUN": "1", "OFA_PYTHON": "python", **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def parse(words):
    """The configuration of a printed command."""
    program = next(i for i, word in enumerate(words) if word.endswith((f"{os.sep}train.py", f"{os.sep}evaluate.py")))
    parser = train if words[program].endswith("train.py") else evaluate
    return parser.parse_args(words[program + 1 :])


def test_scripts_are_found():
    assert len(SCRIPTS) >= 5 and {"demo", "tiny", "medium", "base", "large", "huge"} == set(SIZES)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_script_parses(script, shell):
    cwd = script.parent if shell == "bash" else ROOT
    name = script.name if shell == "bash" else script
    (words,) = dry_run(name, shell=shell, cwd=cwd)
    assert parse(words).task._name == script.parent.name
    assert len(script.read_text().splitlines()) <= 30


@pytest.mark.parametrize("size", SIZES)
def test_stage1_in_every_size(size):
    (words,) = dry_run(ROOT / "run_scripts/caption/train_caption_stage1.sh", SIZE=size)
    cfg = parse(words)
    assert cfg.model._name == f"ofa_{size}"
    assert list(cfg.optimization.lr) == [1e-5] and cfg.lr_scheduler.warmup_ratio == 0.06
    if size != "demo":
        assert cfg.optimization.max_epoch == (2 if size in ("large", "huge") else 5)
        assert cfg.criterion.drop_worst_after == (2500 if size in ("large", "huge") else 6000)
        assert cfg.model.freeze_encoder_embedding and cfg.task.patch_image_size == 480


def test_recipe_of_the_huge_evaluation():
    (words,) = dry_run(ROOT / "run_scripts/caption/evaluate_caption_huge.sh")
    cfg = parse(words)
    assert cfg.generation.beam == 10 and cfg.generation.temperature == 0.98 and cfg.generation.lenpen == 0.98
    assert cfg.common_eval.path.endswith("caption_huge_best.pt")


def test_users_flags_come_last_and_keep_their_blanks():
    (words,) = dry_run(ROOT / "run_scripts/caption/train_caption_stage1.sh", "--lr=3e-5", '--eval-args={"beam": 2}')
    assert parse(words).optimization.lr == [3e-5] and parse(words).task.eval_args == '{"beam": 2}'


def test_clusters_come_from_the_environment():
    env = {"GPUS_PER_NODE": "8", "WORKER_CNT": "4", "RANK": "2", "MASTER_ADDR": "host0", "MASTER_PORT": "2345"}
    (words,) = dry_run(ROOT / "run_scripts/caption/train_caption_stage1.sh", PRECISION="bf16", **env)
    launcher = words[: words.index(str(ROOT / "train.py"))]
    assert launcher[1:] == [
        "-m", "torch.distributed.run", "--nproc_per_node=8", "--nnodes=4", "--node_rank=2", "--master_addr=host0",
        "--master_port=2345",
    ]  # fmt: skip
    assert "--bf16" in words


def test_a_started_run_goes_on_instead_of_restoring_the_released_file(tmp_path):
    script = ROOT / "run_scripts/caption/train_caption_stage1.sh"
    (fresh,) = dry_run(script, OUTPUT_DIR=str(tmp_path))
    save_dir = Path(next(word for word in fresh if word.startswith("--save-dir=")).removeprefix("--save-dir="))
    assert "--reset-optimizer" in fresh and not save_dir.exists()
    save_dir.mkdir(parents=True)
    (save_dir / "checkpoint_last.pt").touch()
    (again,) = dry_run(script, OUTPUT_DIR=str(tmp_path))
    assert "--reset-optimizer" not in again and parse(again).checkpoint.restore_file == "checkpoint_last.pt"


def test_unknown_size_is_one_sentence():
    script = ROOT / "run_scripts/caption/evaluate_caption.sh"
    done = subprocess.run(["sh", str(script)], env={**os.environ, "SIZE": "giant"}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("SIZE=giant is unknown: choose base demo huge")
