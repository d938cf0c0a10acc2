"""What would stop a run at its first validation or save stops it before its first update, in one sentence."""

import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch

import train
from digits.__main__ import main as build_demo
from ofa_module import preflight
from ofa_module.engine.trainer import OFATrainer
from tasks.caption import CaptionTask
from tests.programs import ROOT, SMALL, start

ARGS = [
    *SMALL, "--task=caption", f"--bpe-dir={ROOT}/digits/BPE",
    "--criterion=adjust_label_smoothed_cross_entropy", "--selected-cols=0,4,2", "--patch-image-size=48",
    "--code-dict-size=0", "--num-bins=0", "--optimizer=adam", "--lr=1e-3", "--lr-scheduler=polynomial_decay",
    "--warmup-ratio=0.1", "--batch-size=6", "--max-epoch=1", "--no-epoch-checkpoints", "--log-format=simple",
    "--num-workers=0", "--image-bucket-size=8",
]  # fmt: skip
CIDER = ["--eval-cider", '--eval-args={"beam":2,"max_len_b":4}', "--best-checkpoint-metric=cider"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 rows to train on and 4 to validate with."""
    folder = tmp_path_factory.mktemp("demo")
    assert build_demo([str(folder), "--train=12", "--val=4", "--test=2", "--size=48"]) == 0
    return folder / "caption_data"


def argv(data, save_dir, *more, valid="caption_val.tsv"):
    return [f"{data}/caption_stage1_train.tsv,{data}/{valid}", *ARGS, f"--save-dir={save_dir}", *more]


@pytest.fixture
def updates(monkeypatch):
    """Updates done so far."""
    done = []
    step = OFATrainer.train_step

    def counted(self, *args, **options):
        done.append(self.get_num_updates())
        return step(self, *args, **options)

    monkeypatch.setattr(OFATrainer, "train_step", counted)
    return done


@pytest.fixture
def refused(updates, capsys):
    """Runs a training that must stop before its first update; gives its one sentence."""

    def refused(args):
        with pytest.raises(SystemExit) as caught:
            train.main(args)
        errors = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
        assert caught.value.code == 2 and len(errors) == 1 and not updates
        return errors[0]

    return refused


def test_a_metric_that_is_not_logged(data, tmp_path, refused):
    said = refused(argv(data, tmp_path, "--best-checkpoint-metric=cider", "--maximize-best-checkpoint-metric"))
    assert (
        "--best-checkpoint-metric=cider is not logged" in said
        and "loss" in said
        and "_" not in said.split("of ")[-1][0]
    )
    said = refused(argv(data, tmp_path, *CIDER, "--best-checkpoint-metric=bleu"))
    assert "--best-checkpoint-metric=bleu" in said and "cider" in said
    assert not list(tmp_path.glob("*.pt"))


def test_what_validation_reads_first(data, tmp_path, refused):
    assert "/nowhere.p" in refused(argv(data, tmp_path, *CIDER, "--eval-cider-cached-tokens=/nowhere.p"))


def test_rows_of_the_validation_file(data, tmp_path, refused):
    rows = [line.split("\t") for line in (data / "caption_val.tsv").read_text().splitlines()]
    assert len(rows) == 4

    def write(name, change):
        for number, row in enumerate(rows):
            change(number, row)
        shutil.copy(data / "caption_stage1_train.tsv", tmp_path)
        (tmp_path / name).write_text("".join("\t".join(row) + "\n" for row in rows))

    def break_last(number, row):
        row[4] = "!!!" if number == 3 else row[4]

    image = rows[3][4]
    write("broken.tsv", break_last)
    said = refused(argv(tmp_path, tmp_path, *CIDER, "--batch-size-valid=2", valid="broken.tsv"))
    assert "broken.tsv, line 4" in said and "base64" in said
    rows[3][4] = image
    write("silent.tsv", lambda number, row: row.__setitem__(2, ""))
    assert "silent.tsv has no references" in refused(argv(tmp_path, tmp_path, *CIDER, valid="silent.tsv"))


def test_all_missing_files_are_named_at_once(data, tmp_path, refused):
    files = f"{data}/caption_stage1_train.tsv,/nowhere/val.tsv"
    more = ["--bpe-dir=/nowhere/BPE", "--restore-file=/nowhere/ofa.pt", "--eval-cider-cached-tokens=/nowhere/df.p"]
    said = refused([files, *argv(data, tmp_path, *CIDER, *more)[1:]])
    assert "4 files are missing: /nowhere/val.tsv (data), /nowhere/BPE (--bpe-dir), " in said
    assert "/nowhere/df.p (--eval-cider-cached-tokens), /nowhere/ofa.pt (--restore-file)" in said
    assert "4 files" not in refused([files, *argv(data, tmp_path)[1:]])  # one is named by its reader


def test_folders_that_cannot_be_written(data, tmp_path, refused):
    (tmp_path / "file").touch()
    for flag in ("--save-dir", "--tensorboard-logdir"):
        said = refused(argv(data, tmp_path / "save", f"{flag}={tmp_path}/file/folder"))
        assert f"Cannot write to {flag}={tmp_path}/file/folder" in said


def test_a_disk_without_room(data, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    said = refused(argv(data, tmp_path))
    assert f"{tmp_path} has 1 MiB left" in said and "make room" in said


@pytest.mark.parametrize("more", [[], ["--store-ema", "--ema-fp32"], ["--no-save-optimizer-state"]], ids=str)
def test_the_size_of_a_checkpoint(data, tmp_path, more, monkeypatch):
    sizes = []
    measure = preflight.checkpoint_bytes
    monkeypatch.setattr(preflight, "checkpoint_bytes", lambda trainer: sizes.append(measure(trainer)) or sizes[-1])
    train.main(argv(data, tmp_path, "--max-update=1", "--disable-validation", *more))
    assert (tmp_path / "checkpoint_last.pt").stat().st_size == pytest.approx(sizes[0], rel=0.03)


def test_checks_leave_no_trace(data, tmp_path, monkeypatch):
    monkeypatch.setattr(CaptionTask, "uses_ema", True)
    more = [*CIDER, "--store-ema", "--ema-decay=0.5"]
    train.main(argv(data, tmp_path / "checked", *more))
    for name in ("check_validation", "check_room"):
        monkeypatch.setattr(f"ofa_module.engine.loop.{name}", lambda trainer: None)
    train.main(argv(data, tmp_path / "unchecked", *more))
    first, second = (
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True) for name in ("checked", "unchecked")
    )
    for one, other in ((first["model"], second["model"]), (first["extra_state"]["ema"], second["extra_state"]["ema"])):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert first["extra_state"]["best"] == second["extra_state"]["best"]


def test_a_finished_run_says_so_and_names_what_differs(data, tmp_path, updates, capsys):
    train.main(argv(data, tmp_path))
    assert len(updates) == 2 and "Options that differ" not in capsys.readouterr().out
    before = (tmp_path / "checkpoint_last.pt").stat().st_mtime_ns
    for flag, reached in (("--lr=5e-4", "--max-epoch=1"), ("--max-update=2", "--max-update=2")):
        train.main(argv(data, tmp_path, flag, *(["--max-epoch=9"] if "update" in flag else [])))
        said = capsys.readouterr().out
        assert "This run is finished" in said and f"{reached} is reached" in said and "--save-dir" in said
        assert len(updates) == 2 and (tmp_path / "checkpoint_last.pt").stat().st_mtime_ns == before
        if "lr" in flag:
            assert "checkpoint_last.pt: --lr=0.0005 (was 0.001)\n" in said
    train.main(argv(data, tmp_path, "--max-epoch=2", "--batch-size=4", "--dropout=0.2"))
    said = capsys.readouterr().out
    for change in ("--batch-size=4 (was 6)", "--max-epoch=2 (was 1)", "--dropout=0.2 (was 0.0)"):
        assert change in said.partition("Options that differ")[2].splitlines()[0]
    assert len(updates) == 5


def test_the_rate_decays_to_the_end_of_a_run_with_other_settings(data, tmp_path, monkeypatch, capsys):
    """3 epochs of 12 rows, in updates of 2, 6 and 3 rows: each time done and left make up the total."""
    monkeypatch.setattr("ofa_module.engine.loop.check_validation", lambda trainer: None)
    more = ["--max-epoch=3", "--disable-validation", "--save-interval-updates=1"]

    def steps(*flags):
        train.main(argv(data, tmp_path, *more, *flags))
        return capsys.readouterr().out.partition("Total steps ")[2].split(",")[0]

    assert steps("--batch-size=2", "--max-update=3") == "18"
    assert steps("--batch-size=6", "--max-update=4") == "8"  # 3 + 1 + 2 + 2
    assert steps("--batch-size=6", "--max-update=5") == "8"
    assert steps("--batch-size=3", "--max-update=7") == "11"  # 5 + 2 + 4
    assert steps("--batch-size=3") == "11"
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] == 11


def test_an_unchanged_run_lists_nothing_and_a_new_one_neither(data, tmp_path, capsys):
    more = ["--store-ema", "--save-interval-updates=1", "--max-update=1", "--validate-interval=7"]
    train.main(argv(data, tmp_path, *more))
    more[2] = "--max-update=2"
    train.main(argv(data, tmp_path, *more))
    said = capsys.readouterr().out
    assert "Options that differ" in said
    assert said.partition("Options that differ")[2].splitlines()[0].endswith(": --max-update=2 (was 1)")
    resets = ["--reset-optimizer", "--reset-dataloader", "--reset-meters"]
    file = tmp_path / "checkpoint_last.pt"
    train.main(argv(data, tmp_path / "new", f"--restore-file={file}", *resets, "--lr=1e-5", "--max-update=1"))
    said = capsys.readouterr().out
    assert "Options that differ" not in said and "num_updates 1" in said


def start_and_wait(data, save_dir, *more, processes=1):
    """A long training that has just saved a checkpoint."""
    last = save_dir / "checkpoint_last.pt"
    before = last.stat().st_mtime_ns if last.exists() else 0
    more = ("--max-epoch=9999", "--save-interval-updates=1", "--disable-validation", *more)
    process = start("train.py", *argv(data, save_dir, *more), processes=processes)
    deadline = time.monotonic() + 300
    while not (last.exists() and last.stat().st_mtime_ns > before) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_one_run_per_save_folder_and_ctrl_c(data, tmp_path, refused, capsys):
    """A second run is refused while the first one lives, not when it is killed and its data loaders still die."""
    process = start_and_wait(data, tmp_path, "--num-workers=1")
    assert process.poll() is None, process.communicate()[0]
    try:
        said = refused(argv(data, tmp_path, "--max-update=1"))
        assert f"{tmp_path} is the save folder of another run (process {process.pid} on " in said
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    (tmp_path / "checkpoint_1_4.pt.tmp").write_text("half of it")  # as a kill during a save leaves it
    train.main(argv(data, tmp_path, "--max-update=1"))
    assert not (tmp_path / "checkpoint_1_4.pt.tmp").exists()
    assert "This run is finished" in capsys.readouterr().out

    process = start_and_wait(data, tmp_path, "--num-workers=1")
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "Traceback" not in output, output[-3000:]
    last = f"train.py: interrupted. The last checkpoint is {tmp_path}/checkpoint_last.pt. The same command resumes"
    assert output.count(last) == 1


@pytest.mark.slow
def test_ctrl_c_in_two_processes(data, tmp_path):
    process = start_and_wait(data, tmp_path, processes=2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert output.count(f"train.py: interrupted. The last checkpoint is {tmp_path}/checkpoint_last.pt") == 1
    assert 'train.py", line' not in output  # the launcher has a traceback of its own
