"""GenerationConfig: defaults, refused combinations, JSON."""

import typing
from dataclasses import fields

import pytest

from models.generation import GenerationConfig
from utils.errors import UserError

DEFAULTS = dict(
    beam=5, max_len_a=0, max_len_b=200, min_len=1, unnormalized=False, lenpen=1, unkpen=0, temperature=1.0,
    no_repeat_ngram_size=0, match_source_len=False, sampling=False, sampling_topk=-1, sampling_topp=-1.0,
    diverse_beam_groups=-1, diverse_beam_strength=0.5, diversity_rate=-1.0, retain_dropout=False,
    constraint_range=None, gen_code=False, zero_shot=False,
)  # fmt: skip


def test_defaults_are_those_of_the_original():
    assert vars(GenerationConfig()) == DEFAULTS


def test_fields_can_become_flags():
    for option in fields(GenerationConfig):
        assert option.metadata["help"]
        assert option.type in (bool, int, float, typing.Optional[str]), option.name
        assert option.type is not bool or option.default is False


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--beam", dict(beam=0)),
        ("--temperature", dict(temperature=0.0)),
        ("--temperature", dict(temperature=float("nan"))),
        ("--lenpen", dict(lenpen=float("nan"))),
        ("--lenpen -101", dict(lenpen=-101.0)),  # the power of a length would be 0
        ("--lenpen 1000", dict(lenpen=1000)),
        ("--max-len-a", dict(max_len_a=float("inf"))),
        ("--sampling-topk", dict(sampling_topk=5)),
        ("--sampling-topp", dict(sampling_topp=0.9)),
        ("--sampling and --diverse-beam-groups", dict(sampling=True, diverse_beam_groups=5)),
        ("--match-source-len and --diversity-rate", dict(match_source_len=True, diversity_rate=0.5)),
        ("--diverse-beam-groups 2", dict(beam=5, diverse_beam_groups=2)),
        *(
            ("--constraint-range", dict(constraint_range=r))
            for r in ("", "5", "5,", "a,b", "9,9", "-1,4", "1,2,3", "1_0,20", "٥,٩")
        ),
    ],
)
def test_refuses_naming_the_flag(flag, options):
    with pytest.raises(ValueError, match=flag):
        GenerationConfig(**options)


def test_range():
    assert GenerationConfig().token_range is None
    assert GenerationConfig(constraint_range="58457,59457").token_range == (58457, 59457)


def test_json():
    text = '{"beam": 24, "max_len_a": 0, "max_len_b": 1024, "sampling_topk": 256, "temperature": 1}'
    config = GenerationConfig.from_json(text, "--scst-args", sampling=True, beam=3)
    assert config == GenerationConfig(beam=3, max_len_b=1024, sampling=True, sampling_topk=256)
    assert GenerationConfig.from_json("{}") == GenerationConfig()
    assert GenerationConfig.from_json('{"constraint_range": null}') == GenerationConfig()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{beam: 5}", "not JSON"),
        ("", "not JSON"),
        ("[5]", "object"),
        ("[" * 100_000, "not JSON"),
        ('{"lenpen": NaN}', "finite"),
        ('{"beams": 5}', "'beams'"),
        ('{"symbols_to_strip_from_output": 1}', "no decoding option"),
        ('{"beam": "5"}', "beam cannot be '5'"),
        ('{"beam": true}', "beam cannot be True"),
        ('{"sampling": 1}', "sampling cannot be 1"),
        ('{"constraint_range": 4}', "of type str"),
        ('{"beam": 0}', "--beam 0"),
    ],
)
def test_json_errors_name_the_flag(text, part):
    with pytest.raises(UserError, match="^--eval-args") as caught:
        GenerationConfig.from_json(text, "--eval-args")
    assert part in str(caught.value)
