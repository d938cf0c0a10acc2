"""Configurations are those of fairseq's own conversion, for every flag."""

import argparse

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf

import evaluate
import train
from ofa_module.cli import PLUGIN
from ofa_module.configuration import configuration
from tests.test_flags import EVALUATION, STAGE1
from utils.errors import UserError

TEXTS = {  # values of flags that take more than a word or a number
    "lr": "[1e-4, 0.5]", "update_freq": "[2,3]", "adam_betas": "(0.8, 0.98)", "model_overrides": "{'a': \"b\"}",
    "optimizer_overrides": "{'lr': 1}", "eval_args": '{"beam": 5}', "user_dir": str(PLUGIN), "stop_time_hours": "1.5",
    "wandb_project": "it's mine, \\ and \"yours\" = 1", "ans2label_dict": '{"a": 0, "b c": 1}', "seed": "5",
}  # fmt: skip


def every_flag(parser, argv):
    """A command line with every flag, each with another value than its default."""
    options.parse_args_and_arch(parser, argv)  # adds the flags of what the line names
    words = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or not action.option_strings or action.dest in CHOSEN:
            continue
        flag = max(action.option_strings, key=len)
        if action.nargs == 0:
            words.append(flag)
        elif action.choices:
            words.append(f"{flag}={next(choice for choice in action.choices if choice != action.default)}")
        else:
            words.append(f"{flag}={TEXTS.get(action.dest, 'a b' if action.type is str else '3')}")
    return [*argv, *words]


CHOSEN = {
    "task",
    "arch",
    "criterion",
    "optimizer",
    "lr_scheduler",
    "bpe",
    "tokenizer",
    "scoring",
    "tpu",
    "bf16",
    "memory_efficient_bf16",
}
TRAIN = "a,b --task={} --arch=ofa_tiny --criterion={} --optimizer={} --lr-scheduler={}"
LINES = {
    "released training": (train._parser, STAGE1),
    "released evaluation": (evaluate._parser, EVALUATION),
    "all of training": (
        train._parser,
        TRAIN.format("vqa_gen", "scst_reward_criterion", "adam", "cosine").split(),
        True,
    ),
    "all of evaluation": (evaluate._parser, ["x.tsv", "--task=image_gen"], True),
    "others": (train._parser, TRAIN.format("unify_task", "label_smoothed_cross_entropy", "nag", "fixed").split()),
}


@pytest.mark.parametrize("name", LINES)
def test_it_is_fairseqs(name):
    make_parser, argv, *whole = LINES[name]
    argv = every_flag(make_parser(), argv) if whole else argv
    flags = options.parse_args_and_arch(make_parser(), [word for word in argv if not word.startswith("--user-dir")])
    theirs, ours = (OmegaConf.to_container(make(flags)) for make in (convert_namespace_to_omegaconf, configuration))
    if ours["criterion"] and "sentence_avg" not in flags:
        theirs["criterion"]["sentence_avg"] = ours["criterion"]["sentence_avg"]  # see `configuration`
    assert ours == theirs and list(ours) == list(theirs)
    values = (
        (group, key, value) for group in ours if isinstance(ours[group], dict) for key, value in ours[group].items()
    )
    assert not [(group, key) for group, key, value in values if type(value) is not type(theirs[group][key])]
    if whole:
        defaults = configuration(options.parse_args_and_arch(make_parser(), LINES[name][1]))
        same = [
            key
            for group in ("dataset", "task", "common")
            for key in ours[group]
            if ours[group][key] == defaults[group][key]
        ]
        assert len(same) < 15, same  # those that the line chooses, or that have no flag


def test_components_without_a_dataclass_are_left_to_fairseq():
    flags = options.parse_args_and_arch(
        train._parser(), TRAIN.format("caption", "label_smoothed_cross_entropy", "adadelta", "fixed").split()
    )
    assert configuration(flags).optimizer.optimizer == "adadelta"


def test_values_of_another_type_name_their_flag():
    flags = options.parse_args_and_arch(train._parser(), LINES["others"][1])
    flags.max_epoch = "many"
    with pytest.raises(UserError, match="--max-epoch 'many' is not of its type"):
        configuration(flags)
