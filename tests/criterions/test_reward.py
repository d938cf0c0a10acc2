"""Rewards and packed samples, against figures of the original and worked examples."""

import numpy as np
import pytest
import torch

from criterions.linear_cross_entropy import linear_cross_entropy
from criterions.losses import label_smoothed_cross_entropy
from criterions.reward import leave_one_out, pack_rewards, pack_samples
from metrics.cider import CiderD, reward_text


def ids(*rows):
    return [torch.tensor(row) for row in rows]


def test_golden_rewards(golden):
    """From hypotheses and references as text to rewards."""
    rewards = golden("losses_tiny.json")["rewards"]
    counts = [len(own) for own in rewards["hypotheses"]]
    captions = [reward_text(caption) for own in rewards["hypotheses"] for caption in own]
    references = [list(map(reward_text, own)) for own in rewards["references"]]
    repeated = [own for own, count in zip(references, counts, strict=True) for _ in range(count)]
    scores = CiderD.from_pickle("tests/golden/cider_df.p").score(captions, repeated)[1]
    found = pack_rewards(torch.from_numpy(scores), counts)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(scores, rewards["scores"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.numpy(), rewards["reward"], rtol=0, atol=1e-6)


def test_golden_loss(golden):
    """The weighted sum over logits; weight = identity makes logits of features."""
    runs = golden("losses_tiny.json")["function_runs"]
    expected, target = runs["scst_loss"], torch.tensor(runs["target"])
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor(runs["logits"][:4], dtype=dtype, requires_grad=True)
        options = dict(pad=1, eos=2, epsilon=0.0, conf=torch.tensor(expected["reward"], dtype=dtype))
        for sums in (
            label_smoothed_cross_entropy(logits, target, **options),
            linear_cross_entropy(logits, torch.eye(logits.size(-1), dtype=dtype), target, **options),
        ):
            (gradient,) = torch.autograd.grad(sums.loss, logits)
            assert sums.loss.item() == pytest.approx(expected["loss"], rel=1e-5)
            assert sums.ntokens == expected["ntokens"]
            assert gradient.norm().item() == pytest.approx(expected["gradient_norm"], rel=1e-4)


def test_worked_example():
    scores = torch.tensor([1.0, 0.5, 0.0, 1.5, 0.25], dtype=torch.float64)
    assert leave_one_out(scores).tolist() == [0.4375, -0.1875, -0.8125, 1.0625, -0.5]


@pytest.mark.parametrize("scores", [[], [3.7], [0.1] * 5, [1 / 3] * 7, [1e6 / 7] * 3, [0.0] * 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_to_prefer_is_exactly_zero(scores, dtype):
    rewards = leave_one_out(torch.tensor(scores, dtype=dtype))
    assert rewards.dtype == dtype and rewards.tolist() == [0.0] * len(scores)


def test_rewards_of_an_input_do_not_depend_on_the_others():
    scores = torch.tensor([1.0, 3.0, 7.0, 2.0, 2.0, 5.0])
    assert pack_rewards(scores, [2, 1, 3]).tolist() == [-2, 2, 0, 0, 0, 0, -1.5, -1.5, 3]


def test_samples_become_decoder_input_and_target():
    previous, target = pack_samples([ids([5, 6, 2], [7, 2]), ids([8, 9, 4, 2])], bos=0, pad=1)
    assert target.tolist() == [[5, 6, 2, 1], [7, 2, 1, 1], [8, 9, 4, 2], [1, 1, 1, 1]]
    assert previous.tolist() == [[0, 5, 6, 1], [0, 7, 1, 1], [0, 8, 9, 4], [1, 1, 1, 1]]


def test_sample_of_end_of_sentence_alone():
    previous, target = pack_samples([ids([2]), ids([2])], bos=0, pad=1)
    assert previous.tolist() == [[0], [0]] and target.tolist() == [[2], [2]]
