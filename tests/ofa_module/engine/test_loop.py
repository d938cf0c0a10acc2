"""When a run saves, validates and stops: as fairseq's program decides, whatever the flags."""

import random
from types import SimpleNamespace

import fairseq_cli.train as stock
import pytest
import torch
from fairseq import checkpoint_utils

import train
from ofa_module.engine import loop
from ofa_module.engine.files import Checkpoints
from ofa_module.engine.loop import Run
from utils.errors import UserError

ARGV = (
    "a.tsv,b.tsv --task=caption --arch=ofa_tiny --criterion=adjust_label_smoothed_cross_entropy --optimizer=adam "
    "--lr=1e-4 --batch-size=2"
).split()
CHOICES = {
    "--max-update": (0, 4, 7), "--save-interval": (1, 2), "--save-interval-updates": (0, 2, 3),
    "--validate-interval": (1, 2), "--validate-interval-updates": (0, 2, 5), "--validate-after-updates": (0, 4),
    "--patience": (-1, 1, 2), "--stop-time-hours": (0, 1),
}  # fmt: skip
SWITCHES = ("--disable-validation", "--maximize-best-checkpoint-metric")


def decide(cfg, updates, epoch, ends, hours, scores, run):
    """What one update leads to: validated, saved with which score, stops."""
    events = []

    def validate(*_):
        events.append("validate")
        score = next(scores)
        return [score] if run is None else score

    trainer = SimpleNamespace(get_num_updates=lambda: updates, cumulative_training_time=lambda: 3600.0 * hours)
    place = SimpleNamespace(epoch=epoch)
    if run is None:
        stock.validate, checkpoint_utils.save_checkpoint = validate, lambda *given: events.append(("save", given[-1]))
        subsets = [] if cfg.dataset.disable_validation else ["valid"]
        _, stop = stock.validate_and_save(cfg, trainer, SimpleNamespace(), place, subsets, ends)
    else:
        run.trainer, run.epoch, run.validate = trainer, place, validate
        run.checkpoints.save = lambda *given: events.append(("save", given[-1]))
        _, stop = run._validate_and_save(ends)
    return events, stop


@pytest.mark.parametrize("seed", range(25))
def test_decisions_are_those_of_fairseq(seed, monkeypatch):
    rng = random.Random(seed)
    flags = [f"{flag}={rng.choice(values)}" for flag, values in CHOICES.items()]
    cfg = train.parse_args([*ARGV, *flags, *(switch for switch in SWITCHES if rng.random() < 0.3)])
    monkeypatch.setattr(stock, "validate", stock.validate)
    monkeypatch.setattr(checkpoint_utils, "save_checkpoint", checkpoint_utils.save_checkpoint)
    for name in ("best", "num_runs"):
        vars(stock.should_stop_early).pop(name, None)
    run = object.__new__(Run)
    run.cfg, run.checkpoints = cfg, Checkpoints(cfg.checkpoint)
    run.subsets = [] if cfg.dataset.disable_validation else ["valid"]
    scores = [rng.choice((1.0, 2.0, 3.0)) for _ in range(20)]
    theirs, ours = iter(scores), iter(scores)
    for updates in range(1, 10):
        ends, hours = updates % 3 == 0, 2 * (updates > 7)
        given = (updates, (updates + 2) // 3, ends, hours)
        expected = decide(cfg, *given, theirs, None)
        assert decide(cfg, *given, ours, run) == expected, (flags, updates)
        if expected[1]:
            break


def test_lack_of_memory_is_a_sentence(monkeypatch, tmp_path):
    def fail(cfg):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(loop, "Run", fail)
    monkeypatch.setattr(loop, "check_files", lambda cfg: None)
    cfg = train.parse_args([*ARGV, f"--save-dir={tmp_path}", "--max-epoch=1"])
    with pytest.raises(UserError, match="--batch-size=2: halve it and double --update-freq"):
        loop.train(cfg)
