"""Every flag of train.py is followed, has no effect, or is refused in a sentence; and those followed are read."""

import re
from pathlib import Path

import pytest

import train
from ofa_module.engine.flags import ADVICE, FOLLOWED, GROUPS, WITHOUT_EFFECT

ROOT = Path(__file__).parents[3]
ARGV = (
    "a.tsv,b.tsv --task=caption --arch=ofa_tiny --criterion=adjust_label_smoothed_cross_entropy --optimizer=adam "
    "--lr=1e-4 --max-epoch=1 --lr-scheduler=polynomial_decay"
).split()
# What reads them before the engine is asked: the parser, the command line, the start of processes.
ELSEWHERE = {
    "arch", "task", "criterion", "optimizer", "lr_scheduler", "data", "cpu", "user_dir", "log_file", "lr",
    "sentence_avg", "distributed_num_procs", "distributed_backend", "distributed_init_method", "distributed_port",
    "distributed_rank", "device_id", "distributed_no_spawn", "nprocs_per_node",
}  # fmt: skip


def options() -> dict[str, str]:
    """Name of each option -> the flag."""
    return {action.dest: action.option_strings[0] for action in train._parser()._actions if action.option_strings}


def of_group() -> set[str]:
    cfg = train.parse_args(ARGV)
    return {name for group in GROUPS if group in cfg for name in cfg[group]}


def test_the_lists_hold_nothing_else_and_nothing_twice():
    known = {action.dest for action in train._parser()._actions}
    assert not (FOLLOWED | WITHOUT_EFFECT | set(ADVICE)) - known - of_group()
    assert not FOLLOWED & WITHOUT_EFFECT and not (FOLLOWED | WITHOUT_EFFECT) & set(ADVICE)


def test_what_is_followed_is_read():
    files = [*(ROOT / "ofa_module").rglob("*.py"), *(ROOT / "tasks").glob("*.py")]
    code = "\n".join(file.read_text() for file in files if file.name != "flags.py")
    unread = [name for name in FOLLOWED - ELSEWHERE if not re.search(rf"\b{name}\b", code)]
    assert not unread
    # None of what is said to have no effect is read by the engine.
    engine = "\n".join(file.read_text() for file in (ROOT / "ofa_module/engine").glob("*.py") if file.stem != "flags")
    assert not [name for name in WITHOUT_EFFECT if re.search(rf"cfg\.\w+\.{name}\b", engine)]


def test_all_others_are_refused(capsys):
    flags, groups = options(), of_group()
    others = {name for name in flags if name not in FOLLOWED | WITHOUT_EFFECT | groups} | (set(ADVICE) & set(flags))
    others -= {"help", "no_seed_provided"}
    assert {"tpu", "max_tokens", "zero_sharding", "use_bmuf", "pipeline_model_parallel"} <= others
    switches = {a.dest for a in train._parser()._actions if a.nargs == 0}
    choices = {a.dest: a.choices for a in train._parser()._actions if a.choices}
    for name in sorted(others):
        value = [] if name in switches else [str(next(iter(choices.get(name, ["1"]))))]
        with pytest.raises(SystemExit) as caught:
            train.parse_args([*ARGV, "=".join([flags[name], *value])])
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert caught.value.code == 2 and "error: " in said, name
        assert flags[name] in said or name in ("model_parallel_size",), said


@pytest.mark.parametrize(
    "flag, advice",
    [
        ("--max-tokens=100", "batches are counted in rows, pass --batch-size"),
        ("--zero-sharding=os", "every process holds the whole optimizer"),
        ("--ddp-backend=fully_sharded", "pass --ddp-backend=pytorch_ddp"),
        ("--amp-init-scale=4", "pass --fp16-init-scale"),
    ],
)
def test_advice(flag, advice, capsys):
    with pytest.raises(SystemExit):
        train.parse_args([*ARGV, flag])
    assert f"{flag.split('=')[0]}" in (said := capsys.readouterr().err) and advice in said
