"""Closed answer sets: the trie of their tokens."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, TypeVar

import torch
from torch import Tensor

from data.answers import encode_answers
from utils.constants import BOS, EOS, UNK

# Nodes every trie has: before the first token, after end of sentence, and off all answers.
ROOT, DONE, UNKNOWN = 0, 1, 2
Derived = TypeVar("Derived")
# An edge is one number, node * SPAN + token, so that looking one up is a binary search.
SPAN = 1 << 32


@dataclass
class Nodes:
    """The trie seen from its nodes, numbered so that all nodes below one follow it directly.

    Attributes:
        tokens, parents: (nodes,) token that leads to a node, and where from. edges: (nodes,) the edge that does.
        depths: (nodes,) tokens on the way from the root.
        ends: (nodes,) nodes below node n are n + 1 .. ends[n] - 1; of the special nodes 0.
        sources: (E,) node an edge leaves. closing: the edges that end an answer.
        levels: the nodes of each depth, from 1 on.
    """

    tokens: Tensor
    parents: Tensor
    edges: Tensor
    depths: Tensor
    ends: Tensor
    sources: Tensor
    closing: Tensor
    levels: list[Tensor]

    def to(self, device: torch.device) -> "Nodes":
        """The same on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, levels=[level.to(device) for level in self.levels])


class CandidateTrie:
    """Which tokens may continue a path of answer tokens; a few flat tensors, cheap to pickle.

    Answers may repeat or be prefixes of one another. A path that is on no answer may only end; one that has ended
    has no continuation.

    Args:
        answers: token ids of each answer alone, without begin of sentence; one that holds eos ends before it.
        bos, eos: ids of begin and end of sentence, which the trie adds.

    Attributes:
        edges: (E,) sorted, node * SPAN + token. targets: (E,) node an edge leads to.
        offsets: (nodes + 1,) edges of node n are offsets[n] .. offsets[n + 1] - 1.
        leaves: (N,) int32, node at which each answer is complete.
        largest: the highest token id. root_edges: how many edges leave the root; they are the first ones.

    Raises:
        ValueError: no answers, or a negative id.
    """

    def __init__(self, answers: Sequence[Sequence[int]], bos: int = BOS, eos: int = EOS) -> None:
        if not answers:
            raise ValueError("A candidate trie needs at least one answer.")
        self.bos, self.eos = bos, eos
        nodes: list[dict[int, int]] = [{}, {}, {eos: DONE}]
        words = [tuple(takewhile(lambda token: token != eos, answer)) for answer in answers]
        leaves = {}
        for word in sorted(set(words)):  # in order, so that nodes are numbered depth first
            if min(word, default=0) < 0:
                raise ValueError(f"Answer {words.index(word)} holds the negative token id {min(word)}.")
            node = ROOT
            for token in word:
                if token not in nodes[node]:
                    nodes[node][token] = len(nodes)
                    nodes.append({})
                node = nodes[node][token]
            nodes[node][eos] = DONE
            leaves[word] = node
        ordered = [sorted(children.items()) for children in nodes]
        self.edges = torch.tensor([n * SPAN + token for n, children in enumerate(ordered) for token, _ in children])
        self.targets = torch.tensor([target for children in ordered for _, target in children])
        self.offsets = torch.tensor([0, *(len(children) for children in ordered)]).cumsum(0)
        self.leaves = torch.tensor([leaves[word] for word in words], dtype=torch.int32)
        self.largest = max(token for children in ordered for token, _ in children)
        self.root_edges, self._widest = len(ordered[ROOT]), max(map(len, ordered))
        self._origin: CandidateTrie | None = None
        self._moved: dict[torch.device, CandidateTrie] = {}
        self._derived: dict[Any, Any] = {}

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        encode: Callable[[str], Sequence[int]],
        bos: int = BOS,
        eos: int = EOS,
        unk: int = UNK,
    ) -> "CandidateTrie":
        """The trie of texts, each written after a blank as answers are; `encode` is e.g. `Vocabulary.encode`.

        Raises UserError for a text the vocabulary cannot write, ValueError without texts.
        """
        return cls(encode_answers(texts, encode, unk), bos, eos)

    def to(self, device: torch.device) -> "CandidateTrie":
        """The trie with its tensors on a device: itself when they are there, and always the same one of a device."""
        if self.edges.device == device:
            return self
        if device not in self._moved:
            moved = copy(self)
            moved._origin = self
            moved.edges, moved.targets, moved.offsets, moved.leaves = (
                tensor.to(device) for tensor in (self.edges, self.targets, self.offsets, self.leaves)
            )
            self._moved[device] = moved
        return self._moved[device]

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the trie alone."""
        own = {name: value for name, value in vars(self).items() if name not in ("nodes", "fan_out")}
        return {**own, "_origin": None, "_moved": {}, "_derived": {}}

    def derived(self, make: Callable[["CandidateTrie"], Derived]) -> Derived:
        """What `make` makes of the trie, made once."""
        if make not in self._derived:
            self._derived[make] = make(self)
        found: Derived = self._derived[make]
        return found

    @cached_property
    def nodes(self) -> Nodes:
        """What the nodes are, computed at the first use, where it waits for no device."""
        if self._origin is not None:
            return self._origin.nodes.to(self.edges.device)
        count, device = self.offsets.numel() - 1, self.edges.device
        sources = self.edges // SPAN
        tokens, parents, into, depths = torch.zeros(4, count, dtype=torch.long, device=device)
        inner = (self.targets != DONE).nonzero().flatten()
        children = self.targets[inner]
        tokens[children], parents[children], into[children] = self.edges[inner] % SPAN, sources[inner], inner
        node = torch.arange(count, device=device)
        while bool((below := node > UNKNOWN).any()):
            depths += below
            node = parents[node]
        sizes = torch.ones_like(depths)
        levels = [(depths == depth).nonzero().flatten() for depth in range(1, int(depths.max()) + 1)]
        for level in reversed(levels):
            sizes.index_add_(0, parents[level], sizes[level])
        ends = torch.arange(count, device=device) + sizes
        ends[: UNKNOWN + 1] = 0
        closing = (self.targets == DONE).nonzero().flatten()
        return Nodes(tokens, parents, into, depths, ends, sources, closing, levels)

    def tokens(self) -> Tensor:
        """All tokens of all answers and end of sentence, sorted, each once."""
        return (self.edges % SPAN).unique()

    def advance(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Nodes (N,) reached from nodes (N,) by tokens (N,)."""
        wanted = nodes * SPAN + tokens
        index = torch.searchsorted(self.edges, wanted).clamp_(max=self.edges.numel() - 1)
        return torch.where(self.edges[index] == wanted, self.targets[index], UNKNOWN)

    def outgoing(self, nodes: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
        """The edges that leave each node (N,), as pairs: index into nodes (M,), edge (M,).

        Args:
            total: M, if it is known: looking it up waits for the device.
        """
        first, counts = self.offsets[nodes], self.degrees(nodes)
        rows = torch.arange(nodes.numel(), device=nodes.device).repeat_interleave(counts, output_size=total)
        before = counts.cumsum(0) - counts  # pairs of earlier rows
        index = torch.arange(rows.numel(), device=nodes.device) - before[rows] + first[rows]
        return rows, index

    def degrees(self, nodes: Tensor) -> Tensor:
        """How many edges leave each node."""
        return self.offsets[nodes + 1] - self.offsets[nodes]

    @cached_property
    def fan_out(self) -> Tensor:
        """0 .. F - 1, where F is the largest number of edges that leave one node."""
        return torch.arange(self._widest, device=self.offsets.device)

    def next_tokens(self, nodes: Tensor, filler: int) -> Tensor:
        """The tokens that may follow each node (N,), always (N, F): `filler` where there are fewer."""
        index = self.offsets[nodes].unsqueeze(1) + self.fan_out
        inside = index < self.offsets[nodes + 1].unsqueeze(1)
        tokens = self.edges[index.clamp_(max=self.edges.numel() - 1)] % SPAN
        return tokens.masked_fill_(~inside, filler)

    def children(self, path: Sequence[int]) -> list[int]:
        """Tokens that may follow the tokens generated so far (begin of sentence left out), sorted."""
        node = torch.tensor([ROOT])
        for token in path:
            node = self.advance(node, torch.tensor([token]))
        return (self.edges[self.outgoing(node)[1]] % SPAN).tolist()
