"""Rules on logits and log-probabilities, against plain loops."""

import math

import pytest
import torch

from models.generation import CandidateTrie, GenerationConfig
from models.generation.constraints import TokenRules, block_repeated_ngrams, columns_of
from models.generation.step import Candidates, beam_step
from utils.errors import UserError

V = 12
NO_PREFIX = torch.zeros(2, 0, dtype=torch.long)


def make_rules(prefix=NO_PREFIX, trie=None, max_len=6, lengths=None, **options):
    return TokenRules(GenerationConfig(**options), V, max_len, prefix, trie, lengths)


def apply(rules, log_probs, step):
    """What the rules leave of log-probabilities at a step, after begin of sentence only."""
    rules.enter(step)
    position = torch.tensor([step])
    rules.before_softmax(log_probs, position)
    rules.after_softmax(log_probs, lambda: torch.zeros(len(log_probs), step + 1, dtype=torch.long), position)


def ids_at(rules, step):
    rules.enter(step)
    return rules.ids


def choose(rules, step, *tokens):
    """One beam of each sample goes on with these tokens."""
    chosen = torch.tensor(tokens).unsqueeze(1)
    rules.advance(Candidates(chosen.float(), chosen, torch.zeros_like(chosen)), torch.tensor([step]))


def allowed_after(rules, step, rows=2, width=V):
    """Column numbers that the rules leave in each row, starting from a flat distribution."""
    log_probs = torch.full((rows, width), -1.0)
    apply(rules, log_probs, step)
    return [row.isfinite().nonzero().flatten().tolist() for row in log_probs]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_ngram_blocking(size):
    generator = torch.Generator().manual_seed(size)
    tokens = torch.randint(4, 7, (20, 7), generator=generator)
    log_probs = torch.zeros(20, V)
    padded = torch.cat([tokens, torch.ones(20, 3, dtype=torch.long)], dim=1)  # steps to come
    block_repeated_ngrams(log_probs, padded, size, torch.tensor([6]))
    for row, banned in zip(tokens.tolist(), log_probs.isneginf(), strict=True):
        last = row[len(row) - size + 1 :]
        expected = {row[i + size - 1] for i in range(len(row) - size + 1) if row[i : i + size - 1] == last}
        assert set(banned.nonzero().flatten().tolist()) - {1} == expected


def test_ngram_blocking_among_some_ids():
    ids = torch.tensor([0, 1, 2, 3, 8, 9])
    log_probs = torch.zeros(1, 6)
    block_repeated_ngrams(log_probs, torch.tensor([[0, 8, 5, 9]]), 1, torch.tensor([3]), ids)  # 5 is not among them
    assert log_probs.isneginf().tolist() == [[True, True, False, False, True, True]]


def test_columns():
    ids = torch.tensor([0, 1, 2, 3, 8, 9])
    assert columns_of(torch.tensor([0, 2, 8, 9, 7, 11]), ids).tolist() == [0, 2, 4, 5, 1, 1]
    assert columns_of(torch.tensor([5]), None).tolist() == [5]


def test_lengths_and_padding():
    rules = make_rules(min_len=2)
    without_eos = [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    without_eos.remove(2)
    assert allowed_after(rules, 1) == [without_eos] * 2
    assert allowed_after(rules, 2) == [sorted([*without_eos, 2])] * 2
    assert allowed_after(rules, 6) == [[2]] * 2


def test_codes_hold_no_special_token_but_the_last():
    rules = make_rules(gen_code=True, constraint_range="5,9")
    assert ids_at(rules, 0).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert allowed_after(rules, 2, width=8) == [[4, 5, 6, 7]] * 2
    assert allowed_after(rules, 6, width=8) == [[2]] * 2


def test_zero_shot_masks_after_the_softmax():
    rules = make_rules(zero_shot=True, constraint_range="5,9")
    assert ids_at(rules, 0) is None
    logits = torch.zeros(2, V)
    rules.before_softmax(logits, torch.tensor([1]))
    assert bool(logits.isfinite().all())
    assert allowed_after(rules, 1) == [[0, 2, 3, 5, 6, 7, 8]] * 2


def test_trie_after_prefixes_of_different_lengths():
    trie = CandidateTrie([[5, 6], [7]])
    rules = make_rules(torch.tensor([[9, 9], [9, 1]]), trie)
    assert ids_at(rules, 1) is None and ids_at(rules, 2).tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert allowed_after(rules, 0) == [[9], [9]]
    choose(rules, 0, 9, 9)
    assert allowed_after(rules, 1) == [[9], [5, 7]]
    choose(rules, 1, 9, 5)
    assert allowed_after(rules, 2, width=7) == [[4, 6], [5]]  # ids 5 and 7, id 6
    choose(rules, 2, 6, 6)
    rules.keep_samples(torch.tensor([1]))
    assert allowed_after(rules, 3, rows=1, width=7) == [[2]]


def test_forced_token_is_exempt_from_the_other_rules():
    rules = make_rules(torch.tensor([[0, 0], [0, 7]]), no_repeat_ngram_size=1, unkpen=0.0, min_len=3)
    assert allowed_after(rules, 1) == [[0], [7]]


def test_unknown_penalty_counts_when_forced():
    rules = make_rules(torch.tensor([[3], [1]]), unkpen=2.0)
    log_probs = torch.full((2, V), -1.0)
    apply(rules, log_probs, 0)
    assert log_probs[:, 3].tolist() == [-3.0, -3.0] and log_probs[0].isfinite().sum() == 1


def test_as_long_as_the_source():
    rules = make_rules(match_source_len=True, lengths=torch.tensor([2, 3]))
    log_probs = torch.full((4, V), -1.0)  # two beams a sample
    apply(rules, log_probs, 2)
    assert log_probs[:2, 2].tolist() == [0.0, 0.0] and log_probs[:2].isfinite().sum() == 2
    assert log_probs[2:, 2].isneginf().all() and log_probs[2:].isfinite().sum() == 2 * (V - 2)


def test_rows_without_a_number_are_dead():
    log_probs = torch.tensor([[-1.0] * V, [math.nan] * V])
    apply(make_rules(), log_probs, 1)
    found = beam_step(log_probs.unsqueeze(1), torch.zeros(2, 1), beam=2)
    assert found.scores[1].isneginf().all() and found.scores[0].isfinite().all()
    assert log_probs[0].isfinite().sum() == V - 1


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("cannot be combined", dict(trie=CandidateTrie([[5]]), constraint_range="4,6")),
        ("beyond the 12 token ids", dict(constraint_range="4,13")),
        ("--constraint-range 1,2 contains no text ids", dict(constraint_range="1,2")),
        ("--constraint-range 0,4 contains no text ids", dict(constraint_range="0,4")),
        ("Prefix tokens", dict(prefix=torch.tensor([[5], [9]]), constraint_range="4,8")),
    ],
)
def test_contradictions(message, arguments):
    with pytest.raises(UserError, match=message):
        make_rules(**arguments)
