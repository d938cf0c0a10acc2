"""Poisoned batches through the real trainer: nothing changes, the ids are written down, too many end the run."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from fairseq import tasks
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics

import train
from ofa_module.engine.trainer import OFATrainer
from ofa_module.nonfinite import FILE
from tests.programs import ROOT, SMALL, run
from utils.errors import UserError

FLAGS = [
    str(ROOT / "tests/golden/tsv/caption/caption_train.tsv"), "--task=caption", *SMALL,
    "--criterion=adjust_label_smoothed_cross_entropy", "--label-smoothing=0.1", "--optimizer=adam", "--lr=1e-3",
    "--clip-norm=1.0", "--dropout=0.1", "--selected-cols=0,4,2", f"--bpe-dir={ROOT}/utils/BPE", "--max-epoch=1",
    "--image-bucket-size=8", "--batch-size=2", "--store-ema", "--ema-decay=0.9", "--lr-scheduler=polynomial_decay",
]  # fmt: skip


def batch(seed, **more):
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(rng.integers(4, 50000, (2, 5)))
    previous = torch.cat([torch.zeros(2, 1, dtype=torch.long), target[:, :-1]], 1)
    images = torch.from_numpy(rng.standard_normal((2, 3, 32, 32), dtype=np.float32))
    inputs = {"src_tokens": target.flip(1), "prev_output_tokens": previous, "patch_images": images}
    ids = np.array([f"{seed}a", f"{seed}b"])
    return {"id": ids, "nsentences": 2, "ntokens": 10, "target": target, "net_input": inputs, **more}


def poisoned(seed):
    """A batch with one pixel that is not a number."""
    sample = batch(seed)
    sample["net_input"]["patch_images"][0, 0, 3, 4] = torch.nan
    return sample


def forbidden(seed):
    """A batch whose targets its constraints forbid: an infinite loss with finite gradients."""
    nobody = torch.zeros(1, dtype=torch.long)
    return batch(seed, constraint_rows=nobody, constraint_ids=nobody)


@pytest.fixture(scope="module")
def task():
    """Reading the vocabulary takes longest."""
    return tasks.setup_task(train.parse_args(FLAGS).task)


def make_trainer(task, folder, *flags):
    torch.manual_seed(0)
    cfg = train.parse_args([*FLAGS, f"--save-dir={folder}", *flags])
    trainer = OFATrainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    trainer.schedule.decay_over(10, 0)
    return trainer


def everything(trainer):
    """All that training changes, flat."""
    moments = trainer.optimizer.state_dict()["state"]
    return {
        **{f"weight {name}": value.clone() for name, value in trainer.get_model().state_dict().items()},
        **{f"average {name}": value.clone() for name, value in trainer.ema.get_model().state_dict().items()},
        **{f"moment {i} {k}": torch.as_tensor(v).clone() for i, s in moments.items() for k, v in s.items()},
        "updates": torch.tensor(trainer.get_num_updates()),
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


@pytest.mark.parametrize(
    "bad, flags",
    [(poisoned, []), (forbidden, []), (poisoned, ["--bf16"]), (poisoned, ["--bf16", "--memory-efficient-bf16"])],
    ids=["picture", "constraint", "bf16", "memory-efficient"],
)
def test_run_goes_on_as_if_the_bad_update_had_not_been(bad, flags, task, tmp_path):
    with_bad, without = make_trainer(task, tmp_path / "bad", *flags), make_trainer(task, tmp_path / "good", *flags)
    outputs = [with_bad.train_step([sample]) for sample in (batch(1), bad(2), batch(3))]
    assert [output is None for output in outputs] == [False, True, False]
    for sample in (batch(1), batch(3)):
        without.train_step([sample])
    assert_same(everything(with_bad), everything(without))
    assert all(value.isfinite().all() for value in everything(with_bad).values())
    assert lines(tmp_path / "bad") == [{"after_updates": 1, "not_finite": "loss", "ids": ["2a", "2b"]}]
    assert not (tmp_path / "good" / FILE).exists()


@pytest.mark.parametrize("flags", [[], ["--bf16"]], ids=["float32", "bf16"])
def test_gradient_alone_is_not_finite(flags, task, tmp_path):
    trainer = make_trainer(task, tmp_path, *flags)
    trainer.train_step([batch(1)])
    before = everything(trainer)
    hook = trainer.get_model().decoder.layer_norm.weight.register_hook(lambda gradient: gradient * torch.nan)
    assert trainer.train_step([batch(2), batch(3)]) is None
    hook.remove()
    assert_same(before, everything(trainer))
    assert lines(tmp_path) == [{"after_updates": 1, "not_finite": "gradient", "ids": ["2a", "2b", "3a", "3b"]}]
    assert np.isfinite(trainer.train_step([batch(4)])["loss"]) and trainer.get_num_updates() == 2
    assert all(value.isfinite().all() for value in everything(trainer).values())


def test_names_only_the_bad_micro_batches_and_rows_for_want_of_ids(task, tmp_path):
    trainer = make_trainer(task, tmp_path)
    nameless = {key: value for key, value in poisoned(4).items() if key != "id"} | {"rows": torch.tensor([7, 8])}
    with metrics.aggregate(new_root=True) as logged:
        trainer.train_step([batch(1), poisoned(2), batch(3), nameless])
    assert lines(tmp_path)[0]["ids"] == ["2a", "2b", 7, 8]
    assert logged["nonfinite_updates"].val == 1


def test_too_many_in_a_row_end_the_run(task, tmp_path):
    trainer = make_trainer(task, tmp_path, "--max-nonfinite-updates=2")
    for sample in (poisoned(1), batch(2), poisoned(3)):
        trainer.train_step([sample])
    with pytest.raises(UserError, match=f"2 updates in a row.*{FILE}.*--max-nonfinite-updates"):
        trainer.train_step([poisoned(4)])
    assert [line["ids"][0] for line in lines(tmp_path)] == ["1a", "3a", "4a"]


def test_default_and_bad_limit(task, tmp_path):
    assert train.parse_args(FLAGS).training.max_nonfinite_updates == 10
    with pytest.raises(UserError, match="--max-nonfinite-updates 0"):
        make_trainer(task, tmp_path, "--max-nonfinite-updates=0")


def test_validation_losses_are_not_watched(task, tmp_path):
    trainer = make_trainer(task, tmp_path)
    trainer.valid_step(poisoned(1))
    assert trainer.train_step([batch(2)]) is not None and not (tmp_path / FILE).exists()


def text(seed, **more):
    """A batch without images: batch norm in float16 needs a GPU."""
    sample = batch(seed, **more)
    del sample["net_input"]["patch_images"]
    return sample


FLOAT16 = ["--fp16", "--fp16-scale-window=100"]
WHOLE = [*FLOAT16, "--memory-efficient-fp16"]


@pytest.mark.parametrize("flags, fits", [(FLOAT16, 2**14), (WHOLE, 2**14)], ids=["autocast", "whole"])
def test_float16_overflow_only_lowers_the_loss_scale(flags, fits, task, tmp_path):
    trainer = make_trainer(task, tmp_path, *flags, f"--fp16-init-scale={2**17}")
    before = everything(trainer)
    for seed in range(1, 20):
        if trainer.train_step([text(seed)]) is not None:
            break
        assert_same(before, everything(trainer))
    assert trainer.get_num_updates() == 1 and trainer.scaler.loss_scale == fits
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("flags", [FLOAT16, WHOLE], ids=["autocast", "whole"])
def test_float16_loss_that_is_not_finite_leaves_the_loss_scale(flags, task, tmp_path):
    trainer = make_trainer(task, tmp_path, *flags, "--fp16-init-scale=4")
    trainer.train_step([text(1)])
    before = everything(trainer)
    assert trainer.train_step([text(2, conf=torch.tensor([torch.nan, 1]))]) is None
    assert_same(before, everything(trainer))
    assert trainer.scaler.loss_scale == 4 and lines(tmp_path)[0]["ids"] == ["2a", "2b"]
    assert trainer.train_step([text(3)]) is not None and trainer.get_num_updates() == 2


def share(cfg):
    """One of two processes: the second one's second batch is poisoned, and so are both's third and fourth."""
    task = tasks.setup_task(cfg.task)
    trainer = OFATrainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    trainer.schedule.decay_over(10, 0)
    me = int(os.environ["RANK"])
    trainer.train_step([batch(10 + me)])
    before = everything(trainer)
    assert trainer.train_step([(batch, poisoned)[me](20 + me)]) is None
    assert_same(before, everything(trainer))
    assert trainer.train_step([batch(30 + me)]) is not None
    assert trainer.train_step([poisoned(40 + me)]) is None
    with pytest.raises(UserError):
        trainer.train_step([(poisoned, batch)[me](50 + me)])


def test_all_processes_skip_and_stop_together(tmp_path):
    run(__file__, *FLAGS, f"--save-dir={tmp_path}", "--max-nonfinite-updates=2", processes=2, PYTHONPATH=str(ROOT))
    assert [line["ids"] for line in lines(tmp_path)] == [["21a", "21b"], ["40a", "40b", "41a", "41b"], ["50a", "50b"]]


if __name__ == "__main__":
    distributed_utils.call_main(train.parse_args(sys.argv[1:]), share)
