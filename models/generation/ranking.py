"""Exact choice in a closed answer set: the score of every candidate, or the best ones without scoring the rest.

A candidate's score is the sum over its tokens and end of sentence of the log-softmax restricted to what the trie
allows there. It needs one decoder row per node that branches, whatever number of candidates pass it. As no term is
positive, the score so far bounds that of every completion: a best-first search proves the best candidates early.

Shapes: B samples, N candidates, C model width, E edges of the trie; A is 1 or B, 1 where samples do not differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.generation.candidates import DONE, ROOT, SPAN, UNKNOWN, CandidateTrie
from models.ofa import OFA
from models.ofa.encoder import EncoderOutput
from models.ofa.tree import TreeState
from utils.constants import PAD

# Nodes of each sample that the first round of a best-first search expands; every round doubles them.
FIRST_WIDTH = 2
# Edges scored at once: bounds the rows of the token table that are copied.
BLOCK = 2048


@dataclass
class Ranking:
    """Result of `rank_candidates`; candidates a sample may not choose come last, with score -inf.

    Attributes:
        indices: (B, K) candidate numbers, best first; of equal scores the lower number first. K = N without top_k.
        scores: (B, K) float32 log-scores of `indices`; without top_k (B, N), in candidate order.
        probabilities: as `scores`; they add up to 1 over all N candidates, repeated ones share theirs.
        expanded: (B,) decoder rows used besides the prompt, whose last row counts as one; 0 without a choice.
    """

    indices: Tensor
    scores: Tensor
    probabilities: Tensor
    expanded: Tensor


@torch.no_grad()
def rank_candidates(
    model: OFA | Sequence[OFA],
    enc: EncoderOutput | Sequence[EncoderOutput],
    trie: CandidateTrie,
    prompts: Sequence[Sequence[int]] | None = None,
    top_k: int | None = 1,
    *,
    allowed: Sequence[Sequence[int]] | Tensor | None = None,
    max_rows: int = 512,
) -> Ranking:
    """The best candidates, or the score of every one; both exact.

    Args:
        model: one model, or several over one vocabulary (an ensemble: the mean of their probabilities).
        enc: the encoder's output for B samples; with several models a list, one each.
        trie: the candidates.
        prompts: B lists of ids the decoder reads first, each beginning with bos; None = bos alone.
        top_k: how many candidates to find; None = score all.
        allowed: candidates each sample may choose, (B, N) bool or B lists of numbers: the others are not in its trie
            at all, so they take no probability either. None = all.
        max_rows: decoder rows computed at once over the batch; memory grows with it, scores do not depend on it.

    Raises:
        ValueError: arguments that do not fit each other or the model, and sequences longer than it has positions for.
    """
    models = [model] if isinstance(model, OFA) else list(model)
    encs = [enc] if isinstance(enc, EncoderOutput) else list(enc)
    if len(models) != len(encs) or not models:
        raise ValueError(f"{len(models)} models and {len(encs)} encoder outputs: one is needed for each model.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}: it must be at least 1, or None for the scores of all candidates.")
    trie = trie.to(encs[0].out.device)
    B, N = encs[0].out.size(0), trie.leaves.numel()
    if trie.largest >= models[0].config.vocab_size:
        raise ValueError(f"Candidates hold token id {trie.largest}, the model has {models[0].config.vocab_size} ids.")
    tokens, lengths = _pad_prompts([[trie.bos]] * B if prompts is None else prompts, B, trie)
    if allowed is None:
        choices = trie.derived(_Choices)
    else:
        choices = _Choices(trie, _allowed_mask(allowed, B, N, tokens.device))
    if choices.depth is None:  # one answer each
        scores = choices.of_candidates(torch.zeros(B, choices.branching.size(1), device=tokens.device))
        expanded = tokens.new_zeros(B)
    else:
        states = [TreeState(m.decoder, e, tokens, lengths, choices.depth) for m, e in zip(models, encs, strict=True)]
        walk = _Walk(models, states, trie)
        if top_k is None:
            scores, expanded = _score_all(walk, choices, B, max_rows)
        else:
            scores, expanded = _BestFirst(walk, choices, B, max_rows).run(min(top_k, N))
    indices = scores.sort(dim=1, descending=True, stable=True).indices
    probabilities = scores.exp() / choices.copies
    if top_k is not None:
        indices = indices[:, :top_k]
        scores, probabilities = scores.gather(1, indices), probabilities.gather(1, indices)
    return Ranking(indices, scores, probabilities, expanded)


def _pad_prompts(prompts: Sequence[Sequence[int]], samples: int, trie: CandidateTrie) -> tuple[Tensor, Tensor]:
    """Prompts as (B, P) ids, padded, and their lengths (1 or B,)."""
    if len(prompts) != samples:
        raise ValueError(f"{len(prompts)} prompts for {samples} samples: give one each.")
    if any(len(prompt) == 0 or prompt[0] != trie.bos for prompt in prompts):
        raise ValueError(f"A decoder prompt does not begin with begin of sentence (id {trie.bos}).")
    rows = [torch.as_tensor(prompt) for prompt in prompts]
    lengths = [row.numel() for row in rows]
    padded = pad_sequence(rows, batch_first=True, padding_value=PAD).to(trie.edges.device)  # nothing attends to padding
    return padded, torch.tensor(lengths[:1] if len(set(lengths)) == 1 else lengths, device=padded.device)


def _allowed_mask(
    allowed: Sequence[Sequence[int]] | Tensor | None, samples: int, candidates: int, device: torch.device
) -> Tensor:
    """Which candidates each sample may choose, (1 or B, N) bool."""
    if allowed is None:
        return torch.ones(1, candidates, dtype=torch.bool, device=device)
    if isinstance(allowed, Tensor):
        mask = allowed.to(device, torch.bool)
    else:
        mask = torch.zeros(len(allowed), candidates, dtype=torch.bool, device=device)
        for row, numbers in zip(mask, allowed, strict=True):
            if any(not 0 <= number < candidates for number in numbers):
                raise ValueError(f"`allowed` names candidates that do not exist: there are 0 to {candidates - 1}.")
            row[list(numbers)] = True
    if mask.shape != (samples, candidates):
        raise ValueError(f"`allowed` has shape {tuple(mask.shape)}: it must be ({samples}, {candidates}).")
    if not bool(mask.any(1).all()):
        raise ValueError("A sample has no allowed candidate: allow at least one.")
    return mask


class _Choices:
    """What is left of the trie for each sample: (A, ..), where A is 1 when all candidates are allowed.

    Args:
        allowed: (A, N) bool; None = all.

    Attributes:
        open: (A, E) edges on the way to an allowed candidate. branching: (A, nodes) nodes with several open edges.
        onward: (A, nodes) the node where a path continues: the first below that branches or can only end.
        copies: (A, N) allowed candidates with the same tokens.
        depth: depth of the deepest node that branches for some sample; None if none does.
    """

    def __init__(self, trie: CandidateTrie, allowed: Tensor | None = None) -> None:
        self.trie, nodes, self.leaves = trie, trie.nodes, trie.leaves.long()
        self.allowed = torch.ones_like(trie.leaves, dtype=torch.bool)[None] if allowed is None else allowed
        A, count = self.allowed.size(0), nodes.depths.numel()
        ending = torch.zeros(A, count, dtype=torch.long, device=self.leaves.device)
        ending.index_add_(1, self.leaves, self.allowed.long())
        self.copies = ending[:, self.leaves].clamp(min=1)
        # Nodes are numbered depth first, so what lies below one is a range of numbers, and counting it is a difference
        # of two running sums: no loop over the trie, for all samples at once.
        before = F.pad(ending.cumsum(1), (1, 0))  # candidates that end at nodes of lower numbers
        below = before[:, nodes.ends] - before[:, :-1]  # of node n, those that end there or below
        self.open = torch.where(trie.targets == DONE, ending[:, nodes.sources], below[:, trie.targets]) > 0
        ways = torch.zeros_like(ending).index_add_(1, nodes.sources, self.open.long())
        # A single way has probability 1 under the restricted softmax, whatever the model says: only nodes with a
        # choice cost a decoder row.
        self.branching = ways > 1
        self.onward = self._onward(ways)
        deepest = int(nodes.depths.masked_fill(~self.branching.any(0), -1).max())
        self.depth = None if deepest < 0 else deepest

    @cached_property
    def fed(self) -> list[int]:
        """The nodes below the root whose features some sample needs: they or one below branch; parents first."""
        branching = F.pad(self.branching.any(0).cumsum(0), (1, 0))
        numbers: list[int] = (branching[self.trie.nodes.ends] > branching[:-1]).nonzero().flatten().tolist()
        return numbers

    def _onward(self, ways: Tensor) -> Tensor:
        # Chains of single ways are followed by pointer doubling: each round makes the jumps twice as long, so the
        # logarithm of the depth is enough.
        targets, sources = self.trie.targets, self.trie.nodes.sources
        single = self.open & (ways == 1)[:, sources] & (targets != DONE)
        onward = torch.arange(ways.size(1), device=ways.device).repeat(ways.size(0), 1)
        onward.index_add_(1, sources, (targets - sources) * single)
        for _ in range(len(self.trie.nodes.levels).bit_length()):
            onward = onward.gather(1, onward)
        return onward

    def of_candidates(self, complete: Tensor) -> Tensor:
        """Scores at the nodes where candidates are complete (A or B, nodes) -> scores of candidates (.., N)."""
        return complete[:, self.leaves].masked_fill(~self.allowed, -math.inf)


class _Walk:
    """The models and the nodes fed to them; (A, ..) where all samples may be fed the same.

    Attributes:
        slots: (A, T) nodes fed so far; DONE where nothing was fed.
    """

    def __init__(self, models: Sequence[OFA], states: Sequence[TreeState], trie: CandidateTrie) -> None:
        self.models, self.states, self.trie = models, states, trie
        self.rewind()

    def rewind(self) -> None:
        """Forgets all nodes."""
        for state in self.states:
            state.rewind()
        self.slots = self.trie.targets.new_empty(1, 0)

    def keep_samples(self, samples: Tensor) -> None:
        """Goes on with some samples only (1-D indices)."""
        for state in self.states:
            state.keep_samples(samples)
        if self.slots.size(0) > 1:
            self.slots = self.slots[samples]

    def feed(self, fed: Tensor) -> list[Tensor]:
        """Feeds nodes (A, m), whose parents come before them -> of each model, features (B * m, C)."""
        nodes = self.trie.nodes
        self.slots = torch.cat([self.slots.expand(fed.size(0), -1), fed], dim=1)
        # Depth-first numbers again: an ancestor is a node whose range contains the other. DONE, which fills unused
        # slots, has an empty range, so nothing attends to it.
        above, node = self.slots.unsqueeze(1), fed.unsqueeze(2)
        visible = (above <= node) & (node < nodes.ends[above])  # ancestors and itself, (A, m, T)
        tokens, depths = nodes.tokens[fed], nodes.depths[fed]
        return [state.extend(tokens, depths, visible).flatten(0, 1) for state in self.states]

    def after_root(self, edges: Tensor, is_open: Tensor) -> Tensor:
        """Log-probabilities (B, e) of the root's edges (e,), of which some are open (A, e)."""
        parts = []
        for model, state in zip(self.models, self.states, strict=True):
            table = model.decoder.output_projection.weight[self.trie.edges[edges] % SPAN]
            logits = F.linear(state.root.float(), table.float())  # as `after` does
            parts.append(logits.masked_fill(~is_open, -math.inf).log_softmax(1, dtype=torch.float32))
        return _mean_probability(parts)

    def after(self, features: list[Tensor], rows: Tensor, edges: Tensor, is_open: Tensor) -> Tensor:
        """Log-probabilities (e,) of edges (e,) after features rows (e,): all open edges of a row share its softmax."""
        tokens = self.trie.edges[edges] % SPAN
        parts = []
        for model, x in zip(self.models, features, strict=True):
            table = model.decoder.output_projection.weight
            # One dot product an edge: the rows of a product with the whole table would be mostly thrown away, as a
            # node has a few of the 59,457 tokens below it.
            logits = [
                torch.linalg.vecdot(x[r].float(), table[t].float())
                for r, t in zip(rows.split(BLOCK), tokens.split(BLOCK), strict=True)
            ]
            parts.append(_grouped_log_softmax(torch.cat(logits).masked_fill_(~is_open, -math.inf), rows, x.size(0)))
        return _mean_probability(parts)


def _grouped_log_softmax(logits: Tensor, groups: Tensor, count: int) -> Tensor:
    """Log-softmax of logits (e,) within groups (e,) of numbers below `count`; sums in float64, result float32.

    Logits of a group of which none is finite give no number.
    """
    # Groups are ragged, from two edges to thousands, so there is no dimension that a softmax could run over.
    peaks = logits.new_full((count,), -math.inf).scatter_reduce_(0, groups, logits, "amax")
    shifted = (logits - peaks[groups]).double()
    sums = shifted.new_zeros(count).index_add_(0, groups, shifted.exp())
    return (shifted - sums.log()[groups]).float()


def _mean_probability(parts: list[Tensor]) -> Tensor:
    """Log of the models' mean probability, from log-probabilities of each."""
    if len(parts) == 1:
        return parts[0]
    # Rounding can give a mean just above 1. The search relies on no term being positive.
    return (torch.stack(parts).logsumexp(0) - math.log(len(parts))).clamp_(max=0.0)


def _score_all(walk: _Walk, choices: _Choices, samples: int, max_rows: int) -> tuple[Tensor, Tensor]:
    """Scores of all candidates (B, N), decoder rows of each sample (B,).

    Nodes are fed in chunks, each with the ancestors it lacks; between chunks only the prompts stay in memory.
    """
    trie, nodes, parents = walk.trie, walk.trie.nodes, walk.trie.derived(_parents)
    edges = torch.arange(trie.root_edges, device=walk.slots.device)
    log_probs = torch.zeros(samples, nodes.sources.numel(), device=edges.device)
    log_probs[:, edges] = walk.after_root(edges, choices.open[:, edges])
    rows_used, size = 1, max(1, max_rows // samples)
    for chunk in (choices.fed[first : first + size] for first in range(0, len(choices.fed), size)):
        # In depth-first order, whatever of a later node's path is not in the chunk is on the path of its first node.
        ancestors = _ancestors(chunk[0], parents)
        fed = torch.tensor([*ancestors, *chunk], device=edges.device)
        features, own = walk.feed(fed[None]), fed[len(ancestors) :]
        index, edges = trie.outgoing(own)
        wanted = choices.open[:, edges] & choices.branching[:, own[index]]
        sample, pair = wanted.expand(samples, -1).nonzero(as_tuple=True)
        rows, edges = sample * fed.numel() + len(ancestors) + index[pair], edges[pair]
        log_probs[sample, edges] = walk.after(features, rows, edges, torch.ones_like(rows, dtype=torch.bool))
        rows_used += fed.numel()
        walk.rewind()
    log_probs.masked_fill_(~choices.open, -math.inf)
    totals = torch.zeros(samples, nodes.depths.numel(), device=edges.device)
    for level in nodes.levels:  # down the trie, since a total needs its parent's
        totals[:, level] = totals[:, nodes.parents[level]] + log_probs[:, nodes.edges[level]]
    totals[:, nodes.sources[nodes.closing]] += log_probs[:, nodes.closing]
    return choices.of_candidates(totals), torch.full((samples,), rows_used, device=edges.device)


def _parents(trie: CandidateTrie) -> list[int]:
    numbers: list[int] = trie.nodes.parents.tolist()
    return numbers


def _ancestors(node: int, parents: Sequence[int]) -> list[int]:
    """Nodes between the root and a node, the root's child first."""
    path: list[int] = []
    while (node := parents[node]) != ROOT:
        path.insert(0, node)
    return path


class _BestFirst:
    """Best-first search: expands nodes in the order of their score so far until no other can hold a better candidate.

    A round waits for the device once, to learn how large the tensors of the round are.

    Attributes:
        frontier: (B, nodes) score so far of branching nodes that wait to be expanded, -inf elsewhere.
        complete: (B, nodes) score of the candidates that end at a node, -inf where not known; at UNKNOWN anything.
        fed: (B, nodes) whether a node's keys are there. expanded: (B,) decoder rows used.
    """

    def __init__(self, walk: _Walk, choices: _Choices, samples: int, max_rows: int) -> None:
        self.walk, self.choices, self.max_rows = walk, choices, max_rows
        shape = samples, choices.branching.size(1)
        self.open, self.branching, self.onward = (
            per_sample.expand(samples, -1) for per_sample in (choices.open, choices.branching, choices.onward)
        )
        self.frontier = torch.full(shape, -math.inf, device=choices.open.device)
        self.complete = self.frontier.clone()
        self.fed = torch.zeros(shape, dtype=torch.bool, device=choices.open.device)
        self.expanded = torch.ones(samples, dtype=torch.long, device=choices.open.device)

    def run(self, k: int) -> tuple[Tensor, Tensor]:
        """Scores (B, N) of which the k best are exact and all others below them or -inf; decoder rows (B,)."""
        alive = torch.arange(self.expanded.numel(), device=self.expanded.device)
        edges = torch.arange(self.walk.trie.root_edges, device=alive.device)
        log_probs = self.walk.after_root(edges, self.open[:, edges])
        sample, edge = alive.repeat_interleave(edges.numel()), edges.repeat(alive.numel())
        self._reach(sample, edge, log_probs.flatten(), self.open[sample, edge])
        width = FIRST_WIDTH
        while True:
            # No term is positive, so the score so far bounds all that can still come below a node. A sample is done
            # when the k-th best complete candidate is above every bound that is left.
            worst = self.choices.of_candidates(self.complete)[alive].topk(k).values[:, -1:]
            bounds, nodes = self.frontier[alive].topk(min(width, self.frontier.size(1)))
            wanted = (bounds >= worst) & (bounds > -math.inf)  # an equal bound may hold a tie of lower number
            if self.walk.slots.numel() >= self.max_rows:
                self.walk.rewind()  # bounds memory; ancestors that are needed again are fed again
                self.fed.zero_()
            fed, degrees = self._unfed(alive, nodes, wanted), self.walk.trie.degrees(nodes) * wanted
            going = wanted.any(1)
            sizes = torch.stack([going.sum(), wanted.sum(), (fed != DONE).sum(1).max(), degrees.sum()])
            samples, chosen, most, total = sizes.tolist()
            if not samples:
                return self.choices.of_candidates(self.complete), self.expanded
            if samples < alive.numel():
                kept = going.int().argsort(descending=True, stable=True)[:samples]
                self.walk.keep_samples(kept)
                alive, bounds, nodes, wanted, fed = (x[kept] for x in (alive, bounds, nodes, wanted, fed))
            picked = wanted.flatten().int().argsort(descending=True, stable=True)[:chosen]
            self._expand(alive, picked, nodes, bounds, fed[:, :most].contiguous(), total)
            # Few nodes at first, since most questions are settled by then; more later, since a round has a fixed cost.
            width = min(2 * width, max(1, self.max_rows // alive.numel()))

    def _expand(self, alive: Tensor, picked: Tensor, nodes: Tensor, bounds: Tensor, fed: Tensor, total: int) -> None:
        """Expands nodes (n, w) with scores so far (n, w) of the samples `alive` (n,).

        Args:
            picked: which of them, as numbers of the flattened tensors. fed: (n, m) nodes to feed for it, ascending.
            total: number of edges that leave them.
        """
        features = self.walk.feed(fed)
        self.fed[alive[:, None], fed] = True
        self.expanded[alive] += (fed != DONE).sum(1)
        # DONE, which fills up, has a low number: what is searched in must ascend.
        column = torch.searchsorted(fed.masked_fill(fed == DONE, self.fed.size(1)), nodes)
        place = (torch.arange(alive.numel(), device=alive.device)[:, None] * fed.size(1) + column).flatten()[picked]
        sample = alive.repeat_interleave(nodes.size(1), output_size=nodes.numel())[picked]
        chosen, bounds = nodes.flatten()[picked], bounds.flatten()[picked]
        self.frontier[sample, chosen] = -math.inf
        index, edges = self.walk.trie.outgoing(chosen, total)
        is_open = self.open[sample[index], edges]
        scores = bounds[index] + self.walk.after(features, place[index], edges, is_open)
        self._reach(sample[index], edges, scores, is_open)

    def _unfed(self, alive: Tensor, nodes: Tensor, wanted: Tensor) -> Tensor:
        """Of nodes (n, w), those that are wanted and all their ancestors, without what was fed.

        Returns:
            (n, m) ascending, so that parents come first; DONE at the end where a row has fewer.
        """
        none, path = self.fed.size(1), nodes.masked_fill(~wanted, ROOT)
        paths = [path]
        for _ in range(self.choices.depth or 0):
            paths.append(self.walk.trie.nodes.parents[paths[-1]])
        found = torch.cat(paths, dim=1)
        known = (found == ROOT) | self.fed[alive].gather(1, found)
        found = found.masked_fill(known, none).sort(1).values
        repeated = found == F.pad(found, (1, 0), value=ROOT)[:, :-1]
        found = found.masked_fill(repeated, none).sort(1).values
        return found.masked_fill(found == none, DONE)

    def _reach(self, samples: Tensor, edges: Tensor, scores: Tensor, is_open: Tensor) -> None:
        """Follows the open ones of edges (e,) of samples (e,), with the scores after them, to where a choice is."""
        trie = self.walk.trie
        ends = trie.targets[edges] == DONE
        nodes = torch.where(ends, trie.nodes.sources[edges], self.onward[samples, trie.targets[edges]])
        ends |= ~self.branching[samples, nodes]
        # What must not be written goes to a node that nothing leads to: shapes stay known.
        self.complete[samples, nodes.masked_fill(~(ends & is_open), UNKNOWN)] = scores
        self.frontier[samples, nodes.masked_fill(ends | ~is_open, UNKNOWN)] = scores
        self.frontier[:, UNKNOWN] = -math.inf
