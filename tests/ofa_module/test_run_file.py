"""A run from a file: what it takes and refuses, that the command line wins, and that a written file repeats a run."""

import argparse
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fairseq import options
from omegaconf import OmegaConf

import train
from ofa_module.engine import loop
from ofa_module.engine.flags import ADVICE, FOLLOWED, WITHOUT_EFFECT
from ofa_module.run_file import put_under_name, read_run_file
from tests.golden.released_commands import RECIPES
from tests.ofa_module.engine.test_flags import of_group
from tests.ofa_module.test_configuration import TRAIN, every_flag
from utils.errors import UserError

LINE = "a.tsv,b.tsv --task=caption --arch=ofa_tiny --criterion=adjust_label_smoothed_cross_entropy --lr=1e-4".split()
FILE = """# A run.
data: [train.tsv, val.tsv]
task: caption
arch: ofa_tiny
criterion: adjust_label_smoothed_cross_entropy
optimizer: adam
adam-betas: (0.9, 0.98)
lr: [1e-4, 5e-5]
update_freq: [2, 4]
batch-size: 8
max_epoch: 3
selected-cols: 0,4,2
scale_attn: yes
bf16: true
verbose: no
restore_file: null
save_dir: 2026-11-28
eval_args: '{"beam": 5}'
"""


def parsed(*words: str) -> Any:
    """Configuration of a command line as plain values, without what concerns the file itself."""
    content: Any = OmegaConf.to_container(train.parse_args(list(words)), resolve=True, enum_to_str=True)
    content["training"].pop("config")
    return content


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        train.parse_args(words)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    parser = train._parser()
    options.parse_args_and_arch(parser, LINE)
    return parser


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(FILE, encoding="utf-8-sig")
    return path


def test_a_file_is_its_command_line(file: Path) -> None:
    words = ["train.tsv,val.tsv", *LINE[1:-1], "--optimizer=adam", "--adam-betas=(0.9, 0.98)", "--lr=1e-4,5e-5"]
    words += ["--update-freq=2,4", "--batch-size=8", "--max-epoch=3", "--selected-cols=0,4,2", "--scale-attn", "--bf16"]
    line, ours = parsed(*words, "--save-dir=2026-11-28", '--eval-args={"beam": 5}'), parsed(f"--config={file}")
    assert ours == line and ours["common"]["bf16"] and not ours["common"]["tpu"]


def test_the_command_line_wins(file: Path) -> None:
    cfg = train.parse_args(["x.tsv", "--config", str(file), "--lr=1", "--fp16", "--scale-attn=false", "--verbose=true"])
    assert cfg.task.data == "x.tsv" and list(cfg.optimization.lr) == [1.0] and cfg.training.verbose
    assert cfg.common.fp16 and not cfg.common.bf16 and not cfg.model.scale_attn
    other = train.parse_args([f"--config={file}", "--task=gigaword", "--arch=ofa_base", "--noise-ratio=0.5"])
    assert other.task._name == "gigaword" and other.model.encoder_layers == 6 and other.task.noise_ratio == 0.5


@pytest.mark.parametrize(
    "choice, gone",
    [
        ("--optimizer=sgd", "adam_betas: (0.9, 0.98)"),
        ("--lr-scheduler=fixed", "lr_scheduler: polynomial_decay\nwarmup_ratio: 0.1"),
        ("--criterion=cross_entropy", "criterion: adjust_label_smoothed_cross_entropy\nlabel_smoothing: 0.1"),
        ("--task=gigaword", "eval_bleu: false"),
    ],
)
def test_flags_of_what_the_command_line_replaces_are_left_out(choice: str, gone: str, file: Path) -> None:
    lines = [
        line for line in file.read_text("utf-8-sig").splitlines() if line.split(":")[0].replace("-", "_") not in gone
    ]
    file.write_text("\n".join([*lines, gone]) + "\n")
    train.parse_args([f"--config={file}"])
    cfg = train.parse_args([f"--config={file}", choice])
    name, value = choice.removeprefix("--").split("=")
    assert cfg[name.replace("-", "_")]._name == value


@pytest.mark.parametrize("flag", ["--update-freq=0", "--log-interval=0", "--update-freq=2,0"])
def test_numbers_that_nothing_is_divided_by(flag: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse_args([f"--config={file}", flag])
    assert f"{flag.split('=')[0]} 0: choose a number of at least 1." in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, words",
    [
        ("batchsize: 8", "run.yaml, line 1: there is no flag 'batchsize'; the nearest flag is 'batch_size'"),
        ("\nqqq-vvv-www: 8", "run.yaml, line 2: there is no flag 'qqq_vvv_www'; train.py --help lists the flags"),
        ("task: {caption: 1}", "line 1: 'task' contains nested names: write every flag at the top level"),
        ("lr: [[1]]", "line 1: 'lr' takes a text, a number or a list"),
        ("lr: [{a: 1}]", "line 1: 'lr' takes a text, a number or a list"),
        ("lr: []", "line 1: 'lr' is an empty list"),
        ("lr: [1, null]", "'lr' needs a value, and null means none"),
        ("- lr", "run.yaml holds no flags"),
        ("lr", "holds no flags"),
        ("", "holds no flags"),
        ("{}", "holds no flags"),
        ("lr: 1\nlr: 2", "line 2: 'lr' is set twice"),
        ("batch-size: 1\nbatch_size: 2", "line 2: 'batch_size' is set twice"),
        ("batch-size: 1\nmax-sentences: 2", "line 2: 'max_sentences' is set twice"),
        ("? [a]\n: 1", "line 1: the name of a flag is a list or mapping"),
        ("fp16: 1", "line 1: 'fp16' is a switch: write true or false"),
        ("fp16: 'true'", "line 1: 'fp16' is a switch"),
        ("save_dir: on", "'save_dir' needs a value, and on means none: put text in quotes"),
        ("batch_size: many", "line 1: invalid int value: 'many': correct 'batch_size'"),
        ("optimizer: none", "line 1: invalid choice: 'none'"),
        ("config: a.yaml", "line 1: a file of flags cannot include another one"),
        ("lr: !!python/object/apply:os.system ['touch owned']", "line 1: 'lr' takes a text"),
        ("lr: __import__('os').system('touch owned')", """'lr' is "__import__('os').system('touch owned')": write n"""),
        ("lr: !!python/name:os.system x", "line 1: 'lr' takes a text"),
        ("lr: [1\nbatch_size: 2", "is not YAML"),
        ("lr: *there", "is not YAML"),
        ("lr: 1\n---\nlr: 2", "is not YAML"),
        ("lr: " + "[" * 400, "is not YAML"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(
    content: str, words: str, tmp_path: Path, parser: argparse.ArgumentParser
) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(UserError, match=re.escape(words)):
        read_run_file(str(tmp_path / "run.yaml")).words(parser)
    assert not Path("owned").exists()


def test_the_program_ends_with_the_sentence(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("lr: 1\nbatchsize: 8\n")
    said = refused(capsys, *LINE, f"--config={file}")
    assert f"error: {file}, line 2: there is no flag 'batchsize'; the nearest flag is 'batch_size'." in said
    file.write_text("tpu: true")
    assert "--tpu is not supported by train.py" in refused(capsys, *LINE, f"--config={file}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"lr: \xff")
    for path, words in (
        (f"{tmp_path}/run.yaml", "is not UTF-8 text"),
        (f"{tmp_path}/none.yaml", "No such file or directory"),
        (str(tmp_path), "Is a directory"),
        ("", "cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            read_run_file(path)


KNOWN = FOLLOWED.union(WITHOUT_EFFECT, of_group(), ("task", "arch")).difference(ADVICE)
SCRIPTS = ("caption_stage2", "image_gen_stage1_distributed")
RUNS = {script: RECIPES[f"train_{script}.sh"][1][0].split() for script in SCRIPTS}
RUNS["every flag"] = [
    word
    for word in every_flag(train._parser(), TRAIN.format("vqa_gen", "scst_reward_criterion", "adam", "cosine").split())
    if not word.startswith(("--config=", "--device-id=", "--local_rank=", "--distributed-rank=", "--ddp-backend="))
    and (not word.startswith("--") or KNOWN & {word[2:].partition("=")[0].replace("-", "_")})
]


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_writes_repeats_it(name: str, tmp_path: Path) -> None:
    line = parsed(*RUNS[name])
    (tmp_path / "config.yaml").write_text(line["training"].pop("written"))
    again = parsed(f"--config={tmp_path}/config.yaml")
    (tmp_path / "config.yaml").write_text(again["training"].pop("written"))
    assert again == line
    again = parsed(f"--config={tmp_path}/config.yaml")
    assert again["training"].pop("written") == (tmp_path / "config.yaml").read_text() and again == line


def test_a_run_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*LINE, "--save-dir=saved", "--tensorboard-logdir=curves", "--log-file=logs/train.log"]
    cfg = train.parse_args([*words, "--run-name=first try"])
    assert cfg.checkpoint.save_dir == "saved/first try" and cfg.common.tensorboard_logdir == "curves/first try"
    assert cfg.common.log_file == "logs/first try/train.log" and "save_dir: saved\n" in cfg.training.written
    for bad in ("", " ", "..", "a/b", "/a", ".hidden", "-a", "a\nb"):
        cfg.training.run_name = bad
        with pytest.raises(UserError, match="is not a folder name"):
            put_under_name(cfg)
    assert "--run-name=.. is not a folder name" in refused(capsys, *words, "--run-name=..")


def test_a_plugin_of_the_file_is_loaded(tmp_path: Path, file: Path) -> None:
    (tmp_path / "their_flags").mkdir()
    (tmp_path / "their_flags" / "__init__.py").write_text(
        "from dataclasses import dataclass, field\nfrom fairseq.tasks import register_task\n"
        "from tasks.caption import CaptionConfig, CaptionTask\n@dataclass\nclass Theirs(CaptionConfig):\n"
        "    their_flag: int = field(default=1, metadata={'help': 'theirs'})\n"
        "@register_task('their_caption', dataclass=Theirs)\nclass TheirTask(CaptionTask):\n    pass\n"
    )
    file.write_text(
        FILE.replace("task: caption", f"task: their_caption\nuser_dir: {tmp_path}/their_flags\ntheir-flag: 7")
    )
    cfg = train.parse_args([f"--config={file}"])
    assert cfg.task._name == "their_caption" and cfg.task.their_flag == 7
    assert f"user_dir: {tmp_path}/their_flags" in cfg.training.written


@pytest.mark.parametrize("rank, words, there", [(0, [], True), (1, [], False), (0, ["--no-save"], False)])
def test_the_first_process_writes_the_file_beside_the_checkpoints(
    rank: int, words: list[str], there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data := tmp_path / "rows.tsv").touch()
    cfg = train.parse_args([f"{data},{data}", *LINE[1:], f"--save-dir={tmp_path}/saved", "--run-name=one", *words])
    text, cfg.distributed_training.distributed_rank = cfg.training.written, rank
    seen: list[Any] = []
    monkeypatch.setattr(loop, "Run", lambda cfg: seen.append(dict(cfg.training)) or SimpleNamespace(train=lambda: None))
    loop.train(cfg)
    written = tmp_path / "saved/one/config.yaml"
    assert written.exists() == there and (not there or written.read_text() == text)
    assert "written" not in seen[0] and seen[0]["run_name"] == "one"
