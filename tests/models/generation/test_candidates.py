"""CandidateTrie against a plain search through the answers."""

import pickle

import pytest
import torch

from models.generation import CandidateTrie
from models.generation.candidates import DONE, ROOT, UNKNOWN
from tests.models.generation.reference_search import allowed

# Duplicates, prefixes of one another, and an empty answer.
ANSWERS = [[7], [7, 8], [7, 8, 9], [5, 7], [5, 6], [5, 6], [100000, 5], []]


def plain_children(path):
    words = {(*answer, 2) for answer in ANSWERS}
    inside = {word[len(path)] for word in words if word[: len(path)] == tuple(path) and len(word) > len(path)}
    return sorted(inside) if inside or tuple(path) in words else [2]


@pytest.mark.parametrize(
    "path",
    [[], [7], [7, 8], [7, 8, 9], [5], [5, 6], [100000], [2], [7, 2], [5, 7, 2], [9], [7, 9], [5, 8, 8], [200000]],
)
def test_children_of_a_path(path):
    assert CandidateTrie(ANSWERS).children(path) == plain_children(path)


def test_rows_at_once_equal_single_paths():
    trie = CandidateTrie(ANSWERS)
    paths = torch.tensor([[7, 8], [5, 6], [5, 9], [7, 2], [100000, 5]])
    nodes = torch.full((5,), ROOT)
    for tokens in paths.T:
        nodes = trie.advance(nodes, tokens)
    assert nodes[2] == UNKNOWN and nodes[3] == DONE
    rows, tokens = allowed(trie, nodes)
    assert [tokens[rows == i].tolist() for i in range(5)] == [plain_children(path) for path in paths.tolist()]


def test_tokens_and_other_ids_of_end_of_sentence():
    assert CandidateTrie(ANSWERS).tokens().tolist() == [2, 5, 6, 7, 8, 9, 100000]
    assert CandidateTrie([[4, 5]], eos=9).children([4, 5]) == [9]


def test_stays_small_when_pickled():
    answers = [[i, j] for i in range(50) for j in range(50)]
    data = pickle.dumps(CandidateTrie(answers))
    assert len(data) < 24 * (2 * 2500 + 51 + 10)  # three integers a node
    assert pickle.loads(data).children([49]) == list(range(50))


def test_needs_an_answer():
    with pytest.raises(ValueError, match="at least one"):
        CandidateTrie([])
