"""Polynomial decay with a warmup ratio."""

import pytest
from omegaconf import OmegaConf

from ofa_module.lr_scheduler import PolynomialDecay, PolynomialDecayConfig
from utils.errors import UserError


class Optimizer:
    """What a schedule needs of fairseq's optimizers."""

    def __init__(self):
        self.lr = None

    def set_lr(self, lr):
        self.lr = lr

    def get_lr(self):
        return self.lr


def schedule(monkeypatch, **options):
    defaults = dict(
        lr=[1.0], warmup_updates=0, force_anneal=None, end_learning_rate=0.0, power=1.0, warmup_ratio=0.0,
        total_num_update=PolynomialDecayConfig().total_num_update,
    )  # fmt: skip
    monkeypatch.setattr("fairseq.optim.lr_scheduler.fairseq_lr_scheduler.FairseqOptimizer", Optimizer)
    return PolynomialDecay(OmegaConf.create({**defaults, **options}), Optimizer())


def test_warm_up_is_a_share_of_all_updates_and_the_first_step_has_rate_zero(monkeypatch):
    rates = schedule(monkeypatch, warmup_ratio=0.25)
    assert rates.reinit(20, 0)
    assert [rates.step_update(n) for n in (0, 1, 5, 10, 20, 25)] == pytest.approx([0, 0.2, 1, 2 / 3, 0, 0])


def test_share_too_small_for_an_update_means_no_warm_up(monkeypatch):
    rates = schedule(monkeypatch, warmup_ratio=0.01)
    assert rates.reinit(20, 0)
    assert rates.step_update(0) == 1.0


def test_without_ratio_and_total_the_rate_decays_over_a_million_updates(monkeypatch):
    rates = schedule(monkeypatch)
    assert not rates.reinit(99, 0)
    assert [rates.step_update(n) for n in (0, 99, 500_000, 1_000_000)] == pytest.approx([1, 1 - 99e-6, 0.5, 0])


@pytest.mark.parametrize("total", [0.0, -1.0])
def test_total_must_be_positive(monkeypatch, total):
    with pytest.raises(UserError, match="--total-num-update"):
        schedule(monkeypatch, total_num_update=total)


def test_given_totals_stay(monkeypatch):
    rates = schedule(monkeypatch, total_num_update=10.0, warmup_updates=2)
    assert not rates.reinit(99, 0)
    assert rates.step_update(6) == pytest.approx(0.5)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_ratio_out_of_bounds(monkeypatch, ratio):
    with pytest.raises(UserError, match="--warmup-ratio"):
        schedule(monkeypatch, warmup_ratio=ratio)
