"""generate() against figures of the original implementation, and against itself."""

import numpy as np
import pytest
import torch

from models.generation import CandidateTrie, GenerationConfig, generate
from models.ofa.config import OFAConfig  # noqa: F401

RUNS = [
    "caption", "no_ngram_blocking", "ngram2", "min_len8", "lenpen0.5", "lenpen2", "unnormalized", "greedy",
    "beam2_temperature2", "beam3_temperature0.5", "max_len_a", "unkpen", "box", "box_unconstrained",
    "box_short_allowed", "codes", "trie", "trie_unnormalized", "trie_zero_shot", "trie_long_answers",
    "trie_long_answers_lenpen0.3", "prefix",
]  # fmt: skip


@pytest.fixture(scope="module")
def figures(golden):
    return golden("generate_tiny.json")


def pictures(seed, skip=None):
    rng = np.random.default_rng(seed)
    if skip is not None:
        rng.integers(4, 50000, skip)
    return torch.from_numpy(rng.standard_normal((3, 3, 128, 128), dtype=np.float32))


@pytest.fixture(scope="module")
def inputs(figures):
    images = pictures(figures["seed"], skip=(3, 12))
    np.testing.assert_array_equal(images.flatten()[:8].numpy(), np.float32(figures["patch_images_first8"]))
    return {"src_tokens": torch.tensor(figures["src_tokens"]), "patch_images": images}


def compare(actual, expected, unnormalized):
    for a_sample, e_sample in zip(actual, expected, strict=True):
        assert [h.tokens.tolist() for h in a_sample] == [h["tokens"] for h in e_sample]
        for a, e in zip(a_sample, e_sample, strict=True):
            assert a.score == pytest.approx(e["score"], abs=2e-4 if unnormalized else 1e-4)
            assert a.positional_scores.tolist() == pytest.approx(e["positional_scores"], abs=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_equals_the_original(name, figures, inputs, tiny_model):
    run = figures["runs"][name]
    more = dict(run.get("more", {}))
    which, prefix = more.pop("trie", False), more.pop("prefix", None)
    answers = [a for a in figures["answer_tokens"] if which != "long" or len(a) >= 3]
    config = GenerationConfig(**run["options"], **more)
    hypotheses = generate(
        tiny_model, inputs, config,
        trie=CandidateTrie(answers) if which else None,
        prefix_tokens=torch.tensor(prefix) if prefix else None,
    )  # fmt: skip
    compare(hypotheses, run["hypotheses"], config.unnormalized)
