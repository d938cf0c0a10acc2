"""Selection steps against plain loops."""

import math

import pytest
import torch

from models.generation import GenerationConfig
from models.generation.step import (
    Candidates,
    beam_step,
    diverse_groups_step,
    make_step,
    sampling_step,
    survivors,
)


def random_step(B, n, U, seed=0):
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(B, n, U, generator=generator).log_softmax(-1)
    return log_probs, -3 * torch.rand(B, n, generator=generator)


def plain_beam(log_probs, scores, beam, rate=0.0):
    """Candidates (score, token, beam) of one sample, lists instead of tensors."""
    proposals = []
    for b, (row, score) in enumerate(zip(log_probs.tolist(), scores.tolist(), strict=True)):
        best = sorted(((p + score, token) for token, p in enumerate(row)), reverse=True)[: 2 * beam]
        proposals += [(p - rate * rank, token, b) for rank, (p, token) in enumerate(best, start=1)]
    return sorted(proposals, reverse=True)[: 2 * beam]


def plain_groups(log_probs, scores, beam, groups, strength):
    counts, proposals = [0] * log_probs.size(1), []
    for g in range(groups):
        part = log_probs[g::groups] - strength * torch.tensor(counts)
        found = plain_beam(part, scores[g::groups], beam // groups)
        for _, token, _ in found:
            counts[token] += 1
        proposals.append([(p, token, b * groups + g) for p, token, b in found])
    return [candidate for rank in zip(*proposals, strict=True) for candidate in rank]


def check(candidates, expected):
    for i, sample in enumerate(expected):
        assert candidates.scores[i].tolist() == pytest.approx([c[0] for c in sample], abs=1e-5)
        assert candidates.tokens[i].tolist() == [c[1] for c in sample]
        assert candidates.beams[i].tolist() == [c[2] for c in sample]


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_beam_and_siblings(n, rate):
    log_probs, scores = random_step(3, n, 20)
    expected = [plain_beam(log_probs[i], scores[i], 4, rate if n > 1 else 0.0) for i in range(3)]
    check(beam_step(log_probs, scores, 4, sibling_rate=rate), expected)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_diverse_groups(groups):
    log_probs, scores = random_step(2, 6, 30)
    expected = [plain_groups(log_probs[i], scores[i], 6, groups, 0.8) for i in range(2)]
    check(diverse_groups_step(log_probs, scores, 6, groups, 0.8), expected)


def test_diverse_groups_share_the_first_step():
    log_probs, scores = random_step(1, 1, 12)
    found = diverse_groups_step(log_probs, scores, 3, groups=3, strength=100.0)
    best = log_probs[0, 0].topk(5)
    # Candidates of the groups in turn: the second pair and the third are new tokens.
    assert found.tokens[0, :3].tolist() == best.indices[[0, 2, 4]].tolist()
    assert found.scores[0, :3].tolist() == pytest.approx((best.values[[0, 2, 4]] + scores[0]).tolist())
    assert found.beams.unique().tolist() == [0]


def test_more_beams_than_tokens():
    log_probs, scores = random_step(2, 1, 3)
    candidates = beam_step(log_probs, scores, 5)
    chosen = survivors(candidates, candidates.tokens.eq(2), 5)
    assert chosen.tokens.shape == chosen.beams.shape == (2, 5)
    assert chosen.scores.isfinite().sum(1).tolist() == [2, 2]


def test_survivors_skip_what_has_ended():
    candidates = Candidates(
        torch.tensor([[-1.0, -2.0, -3.0, -4.0], [-1.0, -2.0, -3.0, -math.inf]]),
        torch.tensor([[2, 7, 2, 8], [9, 8, 7, 6]]),
        torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]]),
    )
    chosen = survivors(candidates, candidates.tokens.eq(2), 2)
    assert chosen.tokens.tolist() == [[7, 8], [9, 8]] and chosen.beams.tolist() == [[1, 0], [0, 0]]
    only = survivors(candidates, candidates.tokens.ne(8), 2)
    assert only.tokens[:, 0].tolist() == [8, 8] and only.scores[:, 1].tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("n", [1, 500])
def test_sampling_draws_from_the_distribution(n):
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    log_probs, scores = probabilities.log().expand(1, n, 4), torch.full((1, n), -1.0)
    torch.manual_seed(0)
    drawn = sampling_step(log_probs, scores, 500, top_k=-1, top_p=-1.0)
    frequencies = drawn.tokens.flatten().bincount(minlength=4) / 500
    assert frequencies.tolist() == pytest.approx(probabilities.tolist(), abs=0.07)
    torch.testing.assert_close(drawn.scores, probabilities.log()[drawn.tokens] - 1)
    assert drawn.beams.tolist() == [[0] * 500 if n == 1 else list(range(500))]


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [(2, -1.0, {3, 1}), (1, -1.0, {3}), (9, -1.0, {0, 1, 2, 3}), (1, 0.75, {3, 1}), (-1, 0.85, {3, 1, 2})],
)
def test_sampling_keeps_the_most_likely(top_k, top_p, kept):
    log_probs = torch.tensor([0.05, 0.3, 0.15, 0.5]).log().view(1, 1, 4)
    torch.manual_seed(0)
    drawn = sampling_step(log_probs, torch.zeros(1, 1), 400, top_k, top_p)
    assert set(drawn.tokens.flatten().tolist()) == kept
    torch.testing.assert_close(drawn.scores, log_probs[0, 0][drawn.tokens])  # not renormalized


@pytest.mark.parametrize("n", [1, 4])
def test_own_generators_make_draws_independent_of_the_batch(n):
    log_probs, scores = random_step(3, n, 20)

    def draw(samples):
        generators = [torch.Generator().manual_seed(seed) for seed in samples]
        return sampling_step(log_probs[samples], scores[samples], 4, top_k=9, top_p=-1.0, generators=generators)

    together = draw([0, 1, 2])
    for sample in range(3):
        assert torch.equal(draw([sample]).tokens[0], together.tokens[sample])
    assert torch.equal(draw([2, 0]).scores, together.scores[[2, 0]])


def test_sampling_survives_dead_beams():
    log_probs, scores = random_step(1, 2, 6)
    log_probs[:, 1] = -math.inf
    log_probs[:, 0] -= 200  # a forced unlikely token, whose probability float32 cannot hold
    drawn = sampling_step(log_probs, scores, 2, top_k=3, top_p=-1.0)
    assert drawn.scores.isfinite().tolist() == [[True, False]]


def test_strategies_by_option():
    log_probs, scores = random_step(1, 4, 9)
    plain = make_step(GenerationConfig(beam=4))(log_probs, scores, 4)
    same = make_step(GenerationConfig(beam=4, diversity_rate=0.0))(log_probs, scores, 4)
    other = make_step(GenerationConfig(beam=4, diversity_rate=0.5))(log_probs, scores, 4)
    assert plain.tokens.tolist() == same.tokens.tolist() and plain.scores[0, 0] > other.scores[0, 0]
    groups = make_step(GenerationConfig(beam=4, diverse_beam_groups=2))(log_probs, scores, 4)
    assert groups.beams[0, :4].remainder(2).tolist() == [0, 1, 0, 1]
    assert make_step(GenerationConfig(sampling=True, sampling_topk=1))(log_probs, scores, 4).tokens.shape == (1, 4)
