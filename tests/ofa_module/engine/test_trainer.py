"""Six updates by the trainer against the original's trainer: loss, gradient norm, rates, parameter and EMA probes."""

from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from fairseq import tasks
from fairseq.logging import metrics

import train
from data.sample import DAMAGED
from models.ofa.compiling import compile_layers
from ofa_module.engine.state import _restore_extra
from ofa_module.engine.trainer import OFATrainer
from utils.checkpoint import save_checkpoint, without_history

BATCHES = [(700, [9, 6, 7], [8, 5, 6], 64), (701, [5, 10], [4, 9], 64)]
BASE = [
    "--task=caption", "--arch=ofa_tiny", "--criterion=adjust_label_smoothed_cross_entropy", "--optimizer=adam",
    "--adam-betas=(0.9,0.999)", "--adam-eps=1e-08", "--weight-decay=0.01", "--lr-scheduler=polynomial_decay",
    "--batch-size=3", "--update-freq=2", "--scale-attn", "--scale-fc", "--scale-heads", "--disable-entangle",
    "--selected-cols=0,4,2", "--bpe-dir=utils/BPE", "--max-epoch=1",
]  # fmt: skip
# (loss, gradient norm): batch norm over few values amplifies rounding after the first update.
TOLERANCES = {"freeze_resnet_no_clip": (1e-5, 1e-3)}
LATER = (5e-3, 5e-2)


def batch(seed, source_lengths, target_lengths, size):
    """A batch by the recipe of the golden figures: ids, then images."""
    rng = np.random.default_rng(seed)
    rows = len(source_lengths)
    src = rng.integers(4, 50000, (rows, max(source_lengths)))
    src[:, 0] = 0
    target = rng.integers(4, 50000, (rows, max(target_lengths)))
    prev = np.concatenate([np.zeros((rows, 1), dtype=target.dtype), target[:, :-1]], axis=1)
    for row, (s, t) in enumerate(zip(source_lengths, target_lengths, strict=True)):
        src[row, s - 1], src[row, s:] = 2, 1
        target[row, t - 1], target[row, t:], prev[row, t:] = 2, 1, 1
    images = rng.standard_normal((rows, 3, size, size), dtype=np.float32)
    return {
        "id": np.arange(rows),
        "nsentences": rows,
        "ntokens": int((target != 1).sum()),
        "target": torch.from_numpy(target),
        "net_input": {
            "src_tokens": torch.from_numpy(src),
            "prev_output_tokens": torch.from_numpy(prev),
            "patch_images": torch.from_numpy(images),
            "patch_masks": torch.ones(rows, dtype=torch.bool),
        },
    }


def make_trainer(options, tmp_path, data):
    from weights import fill_

    cfg = train.parse_args([data, *BASE, f"--save-dir={tmp_path}", *options])
    task = tasks.setup_task(cfg.task)
    model = fill_(task.build_model(cfg.model))
    trainer = OFATrainer(cfg, task, model, task.build_criterion(cfg.criterion))
    return trainer, model


def check_probes(state, probes, exact):
    for name, probe in probes.items():
        tensor = state[name].double().flatten()
        assert tensor.norm().item() == pytest.approx(probe["norm"], rel=1e-5 if exact else 1e-3), name
        np.testing.assert_allclose(tensor[:4].numpy(), probe["first4"], atol=2e-5 if exact else 1e-2, err_msg=name)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("plain", []),
        ("drop_worst_ema_frozen_embedding", []),
        ("freeze_resnet_no_clip", []),
        ("freeze_resnet_no_clip", ["--compile"]),
    ],
)
def test_trajectory(name, flags, golden, tmp_path, monkeypatch):
    monkeypatch.setattr("ofa_module.engine.trainer.compile_layers", partial(compile_layers, backend="eager"))
    monkeypatch.setattr("models.ofa.compiling._configure", lambda: None)  # of the whole process
    setup = golden("trajectory_tiny.json")["setups"][name]
    data = "tests/golden/tsv/caption/caption_train.tsv"
    trainer, model = make_trainer([*setup["options"], *flags], tmp_path, data)
    assert (model.encoder.layers[0]._compiled_call_impl is None) == (not flags)
    trainer.schedule.decay_over(10, 0)
    averaged = trainer.ema.get_model() if "ema_after_six_updates" in setup else None  # made before the first update
    loss_tolerance, norm_tolerance = TOLERANCES.get(name, LATER)
    for number, expected in enumerate(setup["updates"][:2] if flags else setup["updates"]):
        if number == 0 and name not in TOLERANCES:
            loss_tolerance, norm_tolerance = 1e-5, 1e-3
        elif name not in TOLERANCES:
            loss_tolerance, norm_tolerance = LATER
        assert trainer.get_lr() == pytest.approx(expected["lr"], rel=1e-9)
        with metrics.aggregate(new_root=True) as logged:
            trainer.train_step([batch(*arguments) for arguments in BATCHES])
        assert logged["loss"].avg == pytest.approx(expected["loss"], rel=loss_tolerance)
        assert logged["nll_loss"].avg == pytest.approx(expected["nll_loss"], rel=loss_tolerance)
        assert float(logged["gnorm"].avg) == pytest.approx(expected["gnorm"], rel=norm_tolerance)
        assert logged["sample_size"].avg == expected["sample_size"]
        if expected["clip"] is not None:
            assert float(logged["clip"].avg) == expected["clip"]
    if flags:
        return
    check_probes(model.state_dict(), setup["after_six_updates"], exact=name in TOLERANCES)
    if averaged is not None:
        check_probes(averaged.state_dict(), setup["ema_after_six_updates"], exact=False)


SMALL = [
    "--arch=ofa_demo",
    "--lr=1",
    "--bpe-dir=digits/BPE",
    "--code-dict-size=0",
    "--num-bins=0",
    "--image-bucket-size=8",
]
USE_AVERAGE, USE_LATEST, STORE = (
    "--use-ema-weights-to-init-param", "--use-latest-weights-to-init-ema", ["--store-ema", "--ema-fp32"],
)  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "held", "weight", "average"),
    [
        ([], ["ema"], 1, None),
        (STORE, ["ema"], 1, 2),
        (STORE, ["ema", "ema_fp32_params"], 1, 3),
        (STORE, [], 1, 1),
        ([USE_AVERAGE], ["ema"], 2, None),
        ([USE_AVERAGE], ["ema", "ema_fp32_params"], 3, None),
        ([USE_AVERAGE], ["ema_fp32_params"], 3, None),
        ([USE_AVERAGE, *STORE], [], 1, 1),
        ([USE_AVERAGE, *STORE], ["ema"], 2, 2),
        ([USE_LATEST, *STORE], ["ema"], 1, 1),
        ([USE_LATEST, *STORE], ["ema", "ema_fp32_params"], 1, 1),
        ([USE_LATEST, USE_AVERAGE, *STORE], ["ema", "ema_fp32_params"], 3, 1),
        ([USE_LATEST, USE_AVERAGE], ["ema"], 2, None),
    ],
)
def test_what_model_and_average_start_from(flags, held, weight, average, tmp_path):
    """The file's weights are all 1, their average 2, the average in single precision 3."""
    trainer, model = make_trainer([*SMALL, *flags], tmp_path, "tests/golden/tsv/caption/caption_train.tsv")
    filled = {
        value: {n: torch.full_like(t, value) if t.is_floating_point() else t for n, t in model.state_dict().items()}
        for value in (1, 2, 3)
    }
    state = without_history(filled[1])
    state["extra_state"] |= {name: filled[2 + ("fp32" in name)] for name in held}
    save_checkpoint(state, tmp_path / "start.pt")
    trainer.load_checkpoint(str(tmp_path / "start.pt"), reset_optimizer=True)
    name = "decoder.layers.0.fc1.weight"
    assert model.state_dict()[name].eq(weight).all()
    if average is not None:
        live = trainer.ema.fp32_params[name]
        assert live.eq(average).all()


BY_EPOCHS, BY_TOTAL = "over 20 updates (--max-epoch)", "(--total-num-update)"


@pytest.mark.parametrize(
    ("flags", "total", "warmup", "said"),
    [
        (["--warmup-ratio=0.1"], 20, 2, [BY_EPOCHS]),
        (["--warmup-ratio=0.1", "--max-update=6"], 20, 2, [BY_EPOCHS, "this run makes 6"]),
        (["--warmup-ratio=0.1", "--max-update=99"], 20, 2, [BY_EPOCHS]),
        (["--warmup-ratio=0.1", "--total-num-update=7", "--warmup-updates=1"], 20, 2, [BY_EPOCHS]),
        ([], 1_000_000, 0, ["over 1000000 updates " + BY_TOTAL, "this run makes 20"]),
        (["--max-update=6"], 1_000_000, 0, ["over 1000000 updates", "this run makes 6"]),
        (["--total-num-update=7", "--warmup-updates=3"], 7, 3, ["over 7 updates " + BY_TOTAL]),
        (["--warmup-ratio=0.1", "--max-epoch=0", "--max-update=6"], 1_000_000, 0, ["no effect without --max-epoch"]),
    ],
)
def test_the_rate_decays_over_the_updates_of_the_original(flags, total, warmup, said, tmp_path, caplog):
    """5 batches an epoch of 4 epochs; --max-update does not shorten the schedule."""
    data = "tests/golden/tsv/caption/caption_train.tsv"
    options = [*SMALL, "--max-epoch=4", "--update-freq=1", *flags]
    trainer, _ = make_trainer(options, tmp_path, data)
    trainer.schedule._epoch_batches, trainer.schedule._epoch = 5, SimpleNamespace(changed=False, more_updates=0)
    with caplog.at_level("INFO", "ofa_module.engine.schedule"):
        trainer.end_epoch(1)
        trainer.end_epoch(2)
    (line,) = [record.getMessage() for record in caplog.records if "Total steps" in record.getMessage()]
    assert line.startswith(f"Total steps {total}, warmup steps {warmup},")
    assert all(part in caplog.text for part in said)
    assert ("this run makes" in line) == (said[-1].startswith("this run makes") or "--max-epoch=0" in flags)
    middle = warmup + (total - warmup) // 2
    assert trainer.schedule.rates.step_update(middle) == pytest.approx(1 - (middle - warmup) / (total - warmup))
    assert trainer.schedule.rates.step_update(total) == 0


def test_images_that_are_read_in_part_are_counted_and_the_first_are_named(monkeypatch, caplog):
    trainer = object.__new__(OFATrainer)
    monkeypatch.setattr(trainer, "_on_device", lambda sample: sample)
    given = {"net_input": {}, "image_notes": [f"rows.tsv, line {n}: {DAMAGED}" for n in range(7)] + ["rows: turned"]}
    with metrics.aggregate(new_root=True) as found:
        for _ in range(3):
            assert trainer._prepare_sample(given)[0] == given
    assert found.get_smoothed_value("damaged_images") == 21
    assert len([record for record in caplog.records if record.message.endswith(DAMAGED)]) == 10


def test_the_clock_runs_after_a_resume_in_the_middle_of_an_epoch():
    metrics.reset()
    metrics.log_start_time("wall")
    saved = metrics.state_dict()
    extra = {"metrics": saved, "train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 3}}
    _restore_extra(Mock(ema=None), extra, reset_meters=False)
    assert metrics.get_meter("default", "wall").elapsed_time > 0
