"""Names of checkpoints: which are written, which are kept, in the order of runs of the original."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

import train
from ofa_module.engine import files
from ofa_module.engine.files import Checkpoints, link_or_copy

ARGV = (
    "a.tsv,b.tsv --task=caption --arch=ofa_tiny --criterion=adjust_label_smoothed_cross_entropy --optimizer=adam "
    "--lr=1e-4 --max-epoch=1"
).split()


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves under the given flags, for (epoch, updates, ends an epoch, score); gives the names that are there then."""

    def write(state, path):
        path.unlink(missing_ok=True)
        path.write_text(str(state["updates"]))

    monkeypatch.setattr(files, "save_checkpoint", write)

    def save_all(flags, *saves):
        cfg = train.parse_args([*ARGV, f"--save-dir={tmp_path}", *flags]).checkpoint
        checkpoints = Checkpoints(cfg)
        for epoch, updates, ends, score in saves:
            trainer = SimpleNamespace(
                get_num_updates=lambda updates=updates: updates, is_data_parallel_master=True,
                state_dict=lambda updates=updates: {"updates": updates, "extra_state": {}},
            )  # fmt: skip
            iterator = SimpleNamespace(epoch=epoch, end_of_epoch=lambda ends=ends: ends, state_dict=dict)
            checkpoints.save(trainer, iterator, score)
        return checkpoints, {path.name: path.read_text() for path in tmp_path.iterdir()}

    return save_all


def test_epochs_intervals_best_and_last(saved):
    checkpoints, names = saved(
        ["--save-interval-updates=2"], (1, 2, False, 5.0), (1, 3, True, 4.0), (2, 4, False, 6.0), (2, 6, True, 4.5)
    )
    assert names == {
        "checkpoint_1_2.pt": "2", "checkpoint1.pt": "3", "checkpoint_2_4.pt": "4", "checkpoint2.pt": "6",
        "checkpoint_best.pt": "3", "checkpoint_last.pt": "6",
    }  # fmt: skip
    assert (checkpoints.best, checkpoints.best_update) == (4.0, 3)


@pytest.mark.parametrize(
    "flags, left",
    [
        (["--keep-last-epochs=2"], {"checkpoint2.pt", "checkpoint3.pt"}),
        (["--no-epoch-checkpoints"], set()),
        (["--save-interval=2"], {"checkpoint2.pt"}),
        (["--no-save"], None),
    ],
)
def test_epochs_that_are_kept(flags, left, saved):
    _, names = saved(flags, (1, 2, True, 3.0), (2, 4, True, 2.0), (3, 6, True, 2.5))
    assert set(names) == (set() if left is None else left | {"checkpoint_best.pt", "checkpoint_last.pt"})


def test_best_of_a_metric_that_grows(saved):
    flags = ["--maximize-best-checkpoint-metric", "--keep-best-checkpoints=2", "--best-checkpoint-metric=cider"]
    flags += ["--no-epoch-checkpoints"]
    scores = (0.5, 0.25, 0.75, 1.25, -0.5)
    checkpoints, names = saved(flags, *((i, i, True, score) for i, score in enumerate(scores, start=1)))
    assert names["checkpoint_best.pt"] == "4" and names["checkpoint_last.pt"] == "5" and checkpoints.best == 1.25
    kept = sorted(name for name in names if name.startswith("checkpoint.best_cider"))
    assert [name[:-4] for name in kept] == ["checkpoint.best_cider_0.750", "checkpoint.best_cider_1.250"]


def test_intervals_that_are_kept(saved):
    flags = ["--save-interval-updates=1", "--keep-interval-updates=1", "--keep-interval-updates-pattern=2"]
    _, names = saved(flags, *((1, i, False, None) for i in range(1, 6)))
    assert {name for name in names if name.startswith("checkpoint_1")} == {f"checkpoint_1_{i}.pt" for i in (2, 4, 5)}


def test_a_second_name_is_a_link_or_a_copy(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("old")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "x" and (tmp_path / "b").samefile(tmp_path / "a")

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "x" and not (tmp_path / "c").samefile(tmp_path / "a")
    assert len(list(tmp_path.iterdir())) == 3


def test_the_first_start_and_the_next(tmp_path):
    asked = []
    trainer = SimpleNamespace(
        load_checkpoint=lambda path, *resets, **more: asked.append((path, *resets[:2], more["reset_meters"])),
        get_train_iterator=lambda epoch: SimpleNamespace(epoch=epoch), end_epoch=lambda epoch: None,
    )  # fmt: skip
    cfg = train.parse_args([*ARGV, f"--save-dir={tmp_path}", "--finetune-from-model=x.pt"]).checkpoint
    Checkpoints(cfg).restore(trainer)
    (tmp_path / "checkpoint_last.pt").touch()
    Checkpoints(cfg).restore(trainer)
    Checkpoints(OmegaConf.merge(cfg, {"restore_file": "y.pt", "reset_optimizer": True})).restore(trainer)
    assert asked == [("x.pt", True, True, True), (f"{tmp_path}/checkpoint_last.pt", False, False, False),
                     ("y.pt", True, False, False)]  # fmt: skip


@pytest.mark.parametrize("extra, patience", [({"patience": [0.5, 1]}, (0.5, 1)), ({}, (None, 0))])
def test_patience_goes_on(extra, patience, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(files, "save_checkpoint", lambda state, path: kept.append(state["extra_state"]["patience"]))
    monkeypatch.setattr(files, "link_or_copy", lambda *_: None)
    content = {"best": 1.0, "train_iterator": {"epoch": 1}, **extra}
    iterator = SimpleNamespace(epoch=1, load_state_dict=lambda _: None, end_of_epoch=lambda: True, state_dict=dict)
    trainer = SimpleNamespace(
        load_checkpoint=lambda *_, **__: content, get_train_iterator=lambda _: iterator, end_epoch=lambda _: None,
        get_num_updates=lambda: 3, is_data_parallel_master=True, state_dict=lambda: {"extra_state": {}},
    )  # fmt: skip
    checkpoints = Checkpoints(train.parse_args([*ARGV, f"--save-dir={tmp_path}"]).checkpoint)
    checkpoints.restore(trainer)
    assert checkpoints.patience == patience
    checkpoints.save(trainer, iterator, None)
    assert kept == [list(patience)]
