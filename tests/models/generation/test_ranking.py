"""rank_candidates against the original's figures and full forward passes of all candidates, written plainly."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.text import Vocabulary
from models.generation import CandidateTrie, ranking
from models.generation.ranking import rank_candidates
from models.ofa import OFA, OFAConfig
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
V, EOS = 40, 2
ROOT = Path(__file__).parents[3]


def make_model(seed: int, scale: float = 4.0) -> OFA:
    """A small model with random weights; `scale` of the token table sets how peaked it is."""
    torch.manual_seed(seed)
    model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=V)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        model.encoder.embed_tokens.weight.normal_(std=scale * 128**-0.5)
    return model


@pytest.fixture(scope="module")
def model() -> OFA:
    return make_model(0)


@torch.no_grad()
def encode(model: OFA, samples: int, seed: int = 0):
    """Sources of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, V, (samples, 7), generator=generator)
    for b in range(samples):
        tokens[b, 7 - b % 4 :] = 1
    return model.encode(tokens)


def random_answers(rng: random.Random, count: int) -> list[list[int]]:
    """Answers over few tokens: many share beginnings, some repeat, some are prefixes of others, one may be empty."""
    width, longest = rng.choice([(2, 5), (5, 3), (30, 2), (8, 6)])
    answers = [[rng.randrange(4, 4 + width) for _ in range(rng.randint(1, longest))] for _ in range(count)]
    answers += [rng.choice(answers)[: rng.randint(0, longest)] for _ in range(count // 4)]
    answers += [[*answers[0][:-1], token] for token in range(10, 13)]  # the same but for the last token
    rng.shuffle(answers)
    return answers


def prompts_of(rng: random.Random, samples: int, kind: str) -> list[list[int]] | None:
    """None, prompts of one length, or of different ones."""
    if kind == "bos":
        return None
    lengths = [4] * samples if kind == "same length" else [rng.randint(1, 6) for _ in range(samples)]
    return [[0, *(rng.randrange(4, V) for _ in range(n - 1))] for n in lengths]


@torch.no_grad()
def plain_scores(models, encs, answers, prompts=None, allowed=None) -> Tensor:
    """(B, N): whole sequences of all candidates through the decoder; allowed (B, N) bool or None."""
    samples = encs[0].out.size(0)
    scores = torch.full((samples, len(answers)), -torch.inf)
    for b in range(samples):
        prompt = [0] if prompts is None else prompts[b]
        mine = [i for i in range(len(answers)) if allowed is None or allowed[b, i]]
        words = [(*answers[i], EOS) for i in mine]
        width = max(map(len, words))
        tokens = torch.tensor([[*prompt, *word[:-1], *[1] * (width - len(word))] for word in words])
        repeated = [enc.select(torch.tensor([b] * len(words))) for enc in encs]
        logits = [m.decode(tokens, e)[:, len(prompt) - 1 :] for m, e in zip(models, repeated, strict=True)]
        for row, (i, word) in enumerate(zip(mine, words, strict=True)):
            total = 0.0
            for t, token in enumerate(word):
                children = sorted({w[t] for w in words if w[:t] == word[:t]})
                each = torch.stack([x[row, t, children].double().log_softmax(0) for x in logits])
                total += each[:, children.index(token)].logsumexp(0).item() - math.log(len(models))
            scores[b, i] = total
    return scores


def check_top(model, enc, trie, full, prompts=None, ks=(1, 3, 1000), **more) -> None:
    """Best-first results equal the exhaustive ones."""
    for k in ks:
        best = rank_candidates(model, enc, trie, prompts, top_k=k, **more)
        torch.testing.assert_close(best.indices, full.indices[:, :k])
        torch.testing.assert_close(best.scores, full.scores.gather(1, full.indices[:, :k]), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            best.probabilities, full.probabilities.gather(1, full.indices[:, :k]), atol=1e-5, rtol=0
        )
        assert not best.scores.isnan().any()


@pytest.mark.parametrize("kind", ["bos", "same length", "different lengths"])
@pytest.mark.parametrize("seed", range(8))
def test_equals_whole_forwards_of_all_candidates(seed, kind):
    rng = random.Random(100 * seed + len(kind))
    samples, answers = rng.choice([1, 2, 5]), random_answers(rng, rng.choice([3, 25]))
    model = make_model(seed, scale=rng.choice([0.5, 4.0, 12.0]))
    enc, prompts, trie = encode(model, samples, seed), prompts_of(rng, samples, kind), CandidateTrie(answers)
    full = rank_candidates(model, enc, trie, prompts, top_k=None, max_rows=rng.choice([1, 7, 512]))
    wanted = plain_scores([model], [enc], answers, prompts)
    torch.testing.assert_close(full.scores, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(full.indices, full.scores.sort(dim=1, descending=True, stable=True).indices)
    torch.testing.assert_close(full.probabilities.sum(1), torch.ones(samples), atol=1e-5, rtol=0)
    check_top(model, enc, trie, full, prompts, max_rows=rng.choice([1, 7, 512]))


@pytest.mark.parametrize("prompt_type", ["none", "prev_output"])
def test_scores_of_the_original(prompt_type, golden, tiny_model):
    figures = golden("generate_tiny.json")
    run = figures["vqa"][prompt_type]
    images = torch.from_numpy(np.random.default_rng(350).standard_normal((3, 3, 128, 128), dtype=np.float32))
    with torch.no_grad():
        enc = tiny_model.encode(torch.tensor(run["src_tokens"]), images)
    trie = CandidateTrie(figures["answer_tokens"])
    full = rank_candidates(tiny_model, enc, trie, run["decoder_prompts"], top_k=None)
    torch.testing.assert_close(full.scores, torch.tensor(run["scores"]), atol=2e-4, rtol=0)
    assert full.indices[:, 0].tolist() == run["argmax"]
    check_top(tiny_model, enc, trie, full, run["decoder_prompts"], ks=(1, 5))


def test_exact_ties_go_to_the_lower_number(model):
    answers = [[9, 8], [7], [9, 8], [5, 5], [7, 4], [5, 6], [9, 9], [7], [6]]
    flat = make_model(0)
    with torch.no_grad():
        flat.encoder.embed_tokens.weight.zero_()  # every logit is 0
    enc, trie = encode(flat, 2), CandidateTrie(answers)
    full = rank_candidates(flat, enc, trie, top_k=None)
    fours, eights = torch.tensor(4.0).log(), torch.tensor(8.0).log()  # the root has 4 children, those 2, 2, 1, 2
    wanted = -torch.stack([eights if len(a) == 2 or a == [7] else fours for a in answers])
    torch.testing.assert_close(full.scores, wanted.expand(2, -1))
    assert full.indices.tolist() == [[8, 0, 1, 2, 3, 4, 5, 6, 7]] * 2
    for k in range(1, 10):
        best = rank_candidates(flat, enc, trie, top_k=k)
        assert best.indices.tolist() == full.indices[:, :k].tolist()
        assert best.scores.tolist() == full.scores.gather(1, best.indices).tolist()


def fixed_logits(values: list[float]) -> OFA:
    """A model whose logit of token i is exactly values[i], whatever came before."""
    model = make_model(0)
    with torch.no_grad():
        model.decoder.layer_norm.weight.zero_()
        model.decoder.layer_norm.bias.zero_()[0] = 1.0
        model.encoder.embed_tokens.weight[:, 0] = torch.tensor(values)
    return model


@pytest.mark.parametrize("levels", [(0.0, 1.0), (0.0, 0.0, 200.0)], ids=["flat", "saturated"])
@pytest.mark.parametrize("seed", range(10))
def test_ties_at_any_depth(seed, levels):
    """Few distinct logits: most scores occur many times, and some bounds equal the score of a complete answer."""
    rng = random.Random(seed)
    answers = random_answers(rng, 40)
    model = fixed_logits([rng.choice(levels) for _ in range(V)])
    enc, trie = encode(model, 2), CandidateTrie(answers)
    full = rank_candidates(model, enc, trie, top_k=None)
    assert len(set(full.scores[0].tolist())) < len(answers) / 2
    for k in (1, 2, 3, 5, 8, 20):
        best = rank_candidates(model, enc, trie, top_k=k)
        assert best.indices.tolist() == full.indices[:, :k].tolist()
        assert best.scores.tolist() == full.scores.gather(1, best.indices).tolist()


def test_a_bound_equal_to_the_best_score_is_followed():
    """Candidates 0 and 1 have probability one half each, but 1 is complete first."""
    model = fixed_logits([0.0] * 7 + [200.0] + [0.0] * (V - 8))
    trie = CandidateTrie([[6, 7], [5], [6, 8]])
    best = rank_candidates(model, encode(model, 1), trie, top_k=1)
    assert best.indices.tolist() == [[0]] and best.scores.item() == pytest.approx(math.log(0.5))


def test_repeated_candidates_share_their_probability(model):
    trie = CandidateTrie([[5], [6, 7], [5], [6, 8]])
    full = rank_candidates(model, encode(model, 2), trie, top_k=None)
    assert torch.equal(full.scores[:, 0], full.scores[:, 2])
    torch.testing.assert_close(full.probabilities[:, 0] * 2, full.scores[:, 0].exp())
    torch.testing.assert_close(full.probabilities.sum(1), torch.ones(2))
    places = [row.index(2) - row.index(0) for row in full.indices.tolist()]
    assert places == [1, 1]


@pytest.mark.parametrize("kind", ["bos", "different lengths"])
@pytest.mark.parametrize("size", [1, 3])
def test_ensembles_average_restricted_probabilities(size, kind):
    rng = random.Random(size)
    answers, prompts = random_answers(rng, 20), prompts_of(rng, 3, kind)
    models = [make_model(seed, scale=6.0) for seed in range(size)]
    encs, trie = [encode(m, 3) for m in models], CandidateTrie(answers)
    full = rank_candidates(models, encs, trie, prompts, top_k=None)
    torch.testing.assert_close(full.scores, plain_scores(models, encs, answers, prompts), atol=1e-4, rtol=0)
    check_top(models, encs, trie, full, prompts)


def test_chunks_and_neighbors_do_not_change_scores(model):
    rng = random.Random(1)
    answers, prompts = random_answers(rng, 60), prompts_of(rng, 4, "different lengths")
    enc, trie = encode(model, 4), CandidateTrie(answers)
    full = rank_candidates(model, enc, trie, prompts, top_k=None)
    for rows in (1, 5, 16, 100):
        chunked = rank_candidates(model, enc, trie, prompts, top_k=None, max_rows=rows)
        torch.testing.assert_close(chunked.scores, full.scores, atol=1e-5, rtol=1e-6)
        check_top(model, enc, trie, full, prompts, ks=(2,), max_rows=rows)
    for b in range(4):
        alone = rank_candidates(model, enc.select(torch.tensor([b])), trie, prompts[b : b + 1], top_k=None)
        torch.testing.assert_close(alone.scores[0], full.scores[b], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("kind", ["bos", "different lengths"])
@pytest.mark.parametrize("seed", range(4))
def test_each_sample_its_own_candidates(seed, kind):
    rng = random.Random(seed)
    answers, prompts = random_answers(rng, 20), prompts_of(rng, 4, kind)
    model, N = make_model(seed, scale=6.0), len(answers)
    enc, trie = encode(model, 4), CandidateTrie(answers)
    lists = [rng.sample(range(N), rng.choice([1, 2, N // 2])) for _ in range(4)]
    mask = torch.tensor([[i in mine for i in range(N)] for mine in lists])
    full = rank_candidates(model, enc, trie, prompts, top_k=None, allowed=lists)
    torch.testing.assert_close(full.scores, plain_scores([model], [enc], answers, prompts, mask), atol=1e-4, rtol=0)
    torch.testing.assert_close(full.probabilities.sum(1), torch.ones(4), atol=1e-5, rtol=0)
    assert (full.probabilities[~mask] == 0).all()
    check_top(model, enc, trie, full, prompts, allowed=mask)


@pytest.mark.parametrize("top_k", [None, 1])
def test_a_single_answer_needs_no_model(model, top_k, monkeypatch):
    enc = encode(model, 2)
    monkeypatch.setattr(ranking, "TreeState", None)
    best = rank_candidates(model, enc, CandidateTrie([[5, 6, 7]]), top_k=top_k)
    assert best.indices.tolist() == [[0], [0]] and best.scores.tolist() == [[0.0], [0.0]]
    assert best.probabilities.tolist() == [[1.0], [1.0]] and best.expanded.tolist() == [0, 0]
    two = rank_candidates(model, enc, CandidateTrie([[5], [6]]), top_k=top_k, allowed=[[1], [0]])
    assert two.indices[:, 0].tolist() == [1, 0]


def test_single_continuations_cost_exactly_nothing(model):
    short, long = CandidateTrie([[5], [6], [7, 8]]), CandidateTrie([[5], [6, 9, 9, 9], [7, 8, 4]])
    enc = encode(model, 2)
    results = [rank_candidates(model, enc, trie, top_k=None) for trie in (short, long)]
    assert torch.equal(results[0].scores, results[1].scores)
    assert [r.expanded.tolist() for r in results] == [[1, 1], [1, 1]]


def test_expanded_rows():
    """200 branches below the root: all are fed for all scores, few when the model is sure."""
    answers = [[i, j, k] for i in range(10, 30) for j in range(10, 20) for k in (4, 5)]
    trie = CandidateTrie(answers)
    rows = {}
    for scale in (0.05, 40.0):
        model = make_model(0, scale)
        enc = encode(model, 3)
        full = rank_candidates(model, enc, trie, top_k=None, max_rows=3 * 220)
        assert full.expanded.tolist() == [1 + 20 + 200] * 3
        check_top(model, enc, trie, full, ks=(1,))
        rows[scale] = rank_candidates(model, enc, trie, top_k=1).expanded
    assert (rows[40.0] <= 12).all() and (rows[0.05] > rows[40.0]).all()
    assert (rows[0.05] <= 1 + 20 + 200).all()


@pytest.mark.parametrize("top_k", [None, 1])
def test_memory_is_bounded_by_the_rows(top_k, monkeypatch):
    """Nodes kept of 2 samples: fewer than max_rows, and what one round feeds: the nodes expanded, their parents."""
    answers = [[i, j, k] for i in range(10, 30) for j in range(10, 20) for k in (4, 5)]
    kept = []

    class Watched(ranking.TreeState):
        def extend(self, tokens, depths, visible):
            kept.append(2 * visible.size(2))
            return super().extend(tokens, depths, visible)

    monkeypatch.setattr(ranking, "TreeState", Watched)
    model = make_model(0, 0.05)
    result = rank_candidates(model, encode(model, 2), CandidateTrie(answers), top_k=top_k, max_rows=32)
    assert result.expanded.sum() > 300
    assert max(kept) <= (32 + 2 if top_k is None else 32 + 2 * 32)


@pytest.mark.parametrize("top_k", [None, 2])
def test_only_the_tokens_of_the_answers_are_looked_at(top_k):
    model = make_model(0)
    enc, trie = encode(model, 2), CandidateTrie([[5, 6], [5, 7], [8]])
    before = rank_candidates(model, enc, trie, top_k=top_k)
    with torch.no_grad():
        model.encoder.embed_tokens.weight[9:] = torch.nan
    after = rank_candidates(model, enc, trie, top_k=top_k)
    assert torch.equal(before.scores, after.scores) and torch.equal(before.indices, after.indices)


def test_bfloat16_still_gives_a_distribution():
    model = make_model(0).bfloat16()
    answers = random_answers(random.Random(0), 30)
    with torch.no_grad():
        enc = model.encode(torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]]))
    for top_k in (None, len(answers)):
        result = rank_candidates(model, enc, CandidateTrie(answers), [[0, 4], [0]], top_k=top_k)
        assert result.scores.dtype == torch.float32
        torch.testing.assert_close(result.probabilities.sum(1), torch.ones(2), atol=1e-4, rtol=0)


def test_arguments_that_do_not_fit(model):
    enc, trie = encode(model, 2), CandidateTrie([[5], [6]])
    for wrong, message in [
        ({"prompts": [[0]]}, "1 prompts for 2 samples"),
        ({"prompts": [[0], []]}, "begin of sentence"),
        ({"prompts": [[0], [5, 0]]}, "begin of sentence"),
        ({"top_k": 0}, "top_k is 0"),
        ({"allowed": [[0]]}, "must be"),
        ({"allowed": [[0], []]}, "no allowed candidate"),
        ({"allowed": [[0], [2]]}, "do not exist"),
        ({"allowed": torch.ones(2, 3, dtype=torch.bool)}, "must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            rank_candidates(model, enc, trie, **wrong)
    with pytest.raises(ValueError, match="1 models and 2"):
        rank_candidates(model, [enc, enc], trie)
    with pytest.raises(ValueError, match=f"token id {V}"):
        rank_candidates(model, enc, CandidateTrie([[V], [5]]))
    with pytest.raises(ValueError, match="positions"):
        rank_candidates(model, enc, CandidateTrie([[5, 5], [5, 6]]), [[0] * 1024, [0]])


def test_tries_from_texts():
    vocabulary = Vocabulary.load(ROOT / "utils" / "BPE")
    texts = ["yes", "no", "two dogs", "no"]
    trie = CandidateTrie.from_texts(texts, vocabulary.encode)
    assert trie.children([]) == sorted({vocabulary.encode(" " + text)[0] for text in texts})
    assert trie.children(vocabulary.encode(" two dogs")) == [EOS]
    assert trie.leaves[1] == trie.leaves[3] != trie.leaves[0]
    with pytest.raises(UserError, match="Answer 1, 'hm', holds a token outside"):
        CandidateTrie.from_texts(["yes", "hm"], lambda text: [3] if text == " hm" else [5])
    with pytest.raises(ValueError, match="at least one"):
        CandidateTrie.from_texts([], vocabulary.encode)


def test_rules_for_odd_answers():
    trie = CandidateTrie([[5, EOS, 9], [5], [EOS]])  # an answer ends at its first end of sentence
    assert trie.leaves.tolist() == [3, 3, 0] and trie.children([5]) == [EOS] and trie.children([]) == [EOS, 5]
    with pytest.raises(ValueError, match="Answer 1 holds the negative token id -4"):
        CandidateTrie([[5], [6, -4]])
    assert trie.to(torch.device("cpu")) is trie and trie.nodes is trie.nodes


@pytest.mark.parametrize("seed", range(3))
def test_nodes_of_a_trie(seed):
    answers = random_answers(random.Random(seed), 40)
    trie = CandidateTrie(answers)
    nodes = trie.nodes
    for answer, leaf in zip(answers, trie.leaves.tolist(), strict=True):
        path, node = [], leaf
        while node:
            assert nodes.depths[node] == len(answer) - len(path)
            assert trie.targets[nodes.edges[node]] == node
            path.insert(0, int(nodes.tokens[node]))
            node = int(nodes.parents[node])
        assert path == answer
    for n in range(3, len(nodes.ends)):  # the special nodes come first
        assert [m for m in range(3, len(nodes.ends)) if is_below(nodes, m, n)] == list(range(n + 1, nodes.ends[n]))


def is_below(nodes, node: int, upper: int) -> bool:
    while node := int(nodes.parents[node]):
        if node == upper:
            return True
    return False
