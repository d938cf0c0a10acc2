"""Runs of the original and of our earlier versions go on with their optimizer."""

import argparse
import random

import pytest
import torch
from fairseq.optim.adam import Adam

from ofa_module.engine.optimizers import FusedAdam
from ofa_module.engine.trainer import OFATrainer
from tests.ofa_module.engine.test_trainer import BATCHES, batch, make_trainer
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.slow
SMALL = ["--arch=ofa_demo", "--encoder-layers=1", "--decoder-layers=1", "--lr=0.01", "--update-freq=1"]
LOSSES = {
    "adjust_label_smoothed_cross_entropy": "AdjustLabelSmoothedCrossEntropyCriterion",
    "adjust_label_smoothed_encouraging_loss": "AdjustLabelSmoothedEncouragingLossCriterion",
}
ITERATOR = {"version": 2, "epoch": 2, "iterations_in_epoch": 0, "shuffle": True}


def trainer_of(folder, *options) -> OFATrainer:
    return make_trainer([*SMALL, *options], folder, "tests/golden/tsv/caption/caption_train.tsv")[0]


def original_file(path, trainer, criterion, frozen=()):
    """A checkpoint as the original writes it; the moments of a parameter are numbers that only it has."""
    weights = trainer.get_model().state_dict()  # in the original's order: tests/models/ofa/test_order.py
    trained = {name: p for name, p in trainer.get_model().named_parameters() if name not in frozen}
    slots = {}
    for number, name in enumerate(name for name in weights if name in trained):
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        slots[number] = {
            "step": 500,
            "exp_avg": torch.randn(trained[name].shape, generator=generator),
            "exp_avg_sq": torch.rand(trained[name].shape, generator=generator),
        }
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False}
    past = {"criterion_name": criterion, "optimizer_name": "FairseqAdam", "lr_scheduler_state": {"best": None}}
    content = {
        "args": None,
        "cfg": {"model": argparse.Namespace(_name="ofa_demo", arch="ofa_demo", data="x.tsv", lr=[1e-4])},
        "model": weights,
        "criterion": None,
        "optimizer_history": [{**past, "num_updates": 500}],
        "task_state": {},
        "extra_state": {"metrics": None, "previous_training_time": 3.0, "train_iterator": ITERATOR, "val_loss": 1.0},
        "last_optimizer_state": {"state": slots, "param_groups": [{**group, "params": list(range(len(slots)))}]},
    }
    del content["extra_state"]["metrics"]
    torch.save(content, path)
    return {name: slots[number] for number, name in enumerate(name for name in weights if name in trained)}


def moments(trainer):
    """Of each named parameter, what the optimizer keeps."""
    state = trainer.optimizer.optimizer.state
    return {name: state[p] for name, p in trainer.get_model().named_parameters() if p in state}


def reorder(path, target, trainer):
    """The same file as a program would have written it that registers parameters in another order."""
    content = load_checkpoint(path)
    names = random.Random(3).sample(list(content["model"]), len(content["model"]))
    params = dict(trainer.get_model().named_parameters(remove_duplicate=False))
    first = {p: name for name, p in trainer.get_model().named_parameters()}
    order = list(dict.fromkeys(first[params[name]] for name in names if name in params))
    optimizer = content["last_optimizer_state"]
    number_of = {name: number for number, name in enumerate(first.values())}
    slots = {name: optimizer["state"].get(number) for name, number in number_of.items()}
    assert order != list(slots) and None in slots.values()  # a parameter without gradient has none
    optimizer["state"] = {number: slots[name] for number, name in enumerate(order) if slots[name] is not None}
    content["model"] = {name: content["model"][name] for name in names}
    content["optimizer_history"][-1]["criterion_name"] = "AdjustLabelSmoothedCrossEntropy"
    save_checkpoint(content, target)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("frozen", [(), ("encoder.embed_tokens.weight",)], ids=["all", "frozen"])
def test_a_run_of_the_original_goes_on(name, frozen, tmp_path):
    options = [f"--criterion={name}", *(["--freeze-encoder-embedding"] if frozen else [])]
    trainer = trainer_of(tmp_path, *options)
    assert type(trainer.get_criterion()).__name__ == LOSSES[name]
    written = original_file(tmp_path / "theirs.pt", trainer, LOSSES[name], frozen)
    trainer.load_checkpoint(str(tmp_path / "theirs.pt"))
    assert trainer.get_num_updates() == 500
    restored = moments(trainer)
    assert (
        restored.keys() == written.keys() == {n for n, p in trainer.get_model().named_parameters() if p.requires_grad}
    )
    for parameter, slot in written.items():
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(restored[parameter][key], slot[key]), parameter
    trainer.train_step([batch(*BATCHES[0])])
    assert trainer.get_num_updates() == 501


def test_a_file_in_another_order_goes_on_to_the_same_bits(tmp_path):
    first = trainer_of(tmp_path)
    for _ in range(2):
        first.train_step([batch(*BATCHES[0])])
    state = first.state_dict()
    state["extra_state"] |= {"train_iterator": ITERATOR, "val_loss": None}
    save_checkpoint(state, tmp_path / "ours.pt")
    reorder(tmp_path / "ours.pt", tmp_path / "earlier.pt", first)
    ends = []
    for name in ("ours.pt", "earlier.pt"):
        trainer = trainer_of(tmp_path)
        trainer.load_checkpoint(str(tmp_path / name))
        trainer.train_step([batch(*BATCHES[1])])
        ends.append(trainer)
    for name, value in ends[0].get_model().state_dict().items():
        assert torch.equal(value, ends[1].get_model().state_dict()[name]), name
    kept = [moments(trainer) for trainer in ends]
    assert all(torch.equal(slot["exp_avg"], kept[1][name]["exp_avg"]) for name, slot in kept[0].items())


def test_what_cannot_go_on_says_so(tmp_path):
    trainer = trainer_of(tmp_path)
    name = LOSSES["adjust_label_smoothed_cross_entropy"]
    path = str(tmp_path / "theirs.pt")
    original_file(path, trainer, name, ("encoder.embed_tokens.weight",))
    with pytest.raises(UserError, match="freeze the same ones"):
        trainer.load_checkpoint(path)
    trainer.load_checkpoint(path, reset_optimizer=True)
    assert trainer.get_num_updates() == 0
    original_file(path, trainer, "ScstRewardCriterion")
    with pytest.raises(UserError, match="its criterion is ScstRewardCriterion, this run's Adjust.*--reset-optimizer"):
        trainer.load_checkpoint(path)


def test_another_model_is_told_before_its_optimizer(tmp_path):
    trainer = trainer_of(tmp_path)
    original_file(tmp_path / "a.pt", trainer, LOSSES["adjust_label_smoothed_cross_entropy"])
    with pytest.raises(UserError, match=r"Cannot load model parameters .*: pass --encoder-layers 1\.$"):
        trainer_of(tmp_path, "--encoder-layers=2").load_checkpoint(str(tmp_path / "a.pt"))


def test_half_precision_of_the_original_goes_on(tmp_path):
    """--fp16 of the original keeps one vector of all parameters, in an optimizer of another name."""
    trainer = trainer_of(tmp_path, "--bf16")
    name = LOSSES["adjust_label_smoothed_cross_entropy"]
    written = original_file(tmp_path / "a.pt", trainer, name)
    content = load_checkpoint(tmp_path / "a.pt")
    saved = content["last_optimizer_state"]
    vectors = {
        key: torch.cat([slot[key].flatten() for slot in saved["state"].values()]) for key in ("exp_avg", "exp_avg_sq")
    }
    saved["state"], saved["param_groups"][0]["params"] = {0: {"step": 500, **vectors}}, [0]
    content["optimizer_history"][-1]["optimizer_name"] = "FP16Optimizer"
    save_checkpoint(content, tmp_path / "flat.pt")
    trainer.load_checkpoint(str(tmp_path / "flat.pt"))
    restored = moments(trainer)
    assert restored.keys() == written.keys()
    for parameter, slot in written.items():
        assert restored[parameter]["step"] == 500
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(restored[parameter][key], slot[key]), parameter
    trainer.train_step([batch(*BATCHES[0])])
    assert trainer.get_num_updates() == 501
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"][1:]
    save_checkpoint(content, tmp_path / "flat.pt")
    with pytest.raises(UserError, match="trains .* weights, this run .*--reset-optimizer"):
        trainer.load_checkpoint(str(tmp_path / "flat.pt"))


@pytest.mark.parametrize("factor", [1.0, 0.37])
def test_adam_is_that_of_fairseq(factor):
    """Steps of parameters in several shapes and memory orders, one of which has no gradient at first."""
    generator = torch.Generator().manual_seed(0)
    options = dict(lr=0.01, betas=(0.9, 0.98), eps=1e-3, weight_decay=0.1)
    shapes = [(3, 4), (5,), (2, 3, 2, 2)]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    values[2] = values[2].to(memory_format=torch.channels_last)
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in values] for _ in range(2))
    fused, stock = FusedAdam(ours, **options), Adam(theirs, **options)
    for step in range(5):
        for one, other in zip(ours, theirs, strict=True):
            gradient = torch.randn(one.shape, generator=generator)
            one.grad, other.grad = gradient.clone(), gradient * factor
        if step < 2:
            ours[1].grad = theirs[1].grad = None
        fused.factor = factor
        fused.step()
        stock.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for one, other in zip(fused.state_dict()["state"].values(), stock.state_dict()["state"].values(), strict=True):
        assert one["step"] == other["step"]
        torch.testing.assert_close([one["exp_avg"], one["exp_avg_sq"]], [other["exp_avg"], other["exp_avg_sq"]])
    groups, stock_groups = (optimizer.state_dict()["param_groups"][0] for optimizer in (fused, stock))
    assert {key: groups[key] for key in ("lr", "betas", "eps", "weight_decay", "amsgrad", "params")} == stock_groups
