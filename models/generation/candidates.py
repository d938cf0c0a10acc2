"""Closed answer sets: the trie of their tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Nodes every trie has: before the first token, after end of sentence, and off all answers.
ROOT, DONE, UNKNOWN = 0, 1, 2
# An edge is one number, node * SPAN + token, so that looking one up is a binary search.
SPAN = 1 << 32


class CandidateTrie:
    """Which tokens may continue a path of answer tokens; a few flat tensors, cheap to pickle.

    Answers may repeat or be prefixes of one another. A path that is on no answer may only end; one that has ended
    has no continuation.

    Args:
        answers: token ids of each answer alone, without begin and end of sentence.
        bos, eos: ids of begin and end of sentence, which the trie adds.

    Attributes:
        edges: (E,) sorted, node * SPAN + token. targets: (E,) node an edge leads to.
        offsets: (nodes + 1,) edges of node n are offsets[n] .. offsets[n + 1] - 1.
    """

    def __init__(self, answers: Sequence[Sequence[int]], bos: int = 0, eos: int = 2) -> None:
        if not answers:
            raise ValueError("A candidate trie needs at least one answer.")
        self.bos, self.eos = bos, eos
        nodes: list[dict[int, int]] = [{}, {}, {eos: DONE}]
        for answer in answers:
            node = ROOT
            for token in answer:
                if token not in nodes[node]:
                    nodes[node][token] = len(nodes)
                    nodes.append({})
                node = nodes[node][token]
            nodes[node][eos] = DONE
        ordered = [sorted(children.items()) for children in nodes]
        self.edges = torch.tensor([n * SPAN + token for n, children in enumerate(ordered) for token, _ in children])
        self.targets = torch.tensor([target for children in ordered for _, target in children])
        self.offsets = torch.tensor([0, *(len(children) for children in ordered)]).cumsum(0)

    def to(self, device: torch.device) -> "CandidateTrie":
        """The same trie with its tensors on a device."""
        moved = object.__new__(CandidateTrie)
        moved.bos, moved.eos = self.bos, self.eos
        moved.edges, moved.targets, moved.offsets = (
            tensor.to(device) for tensor in (self.edges, self.targets, self.offsets)
        )
        return moved

    def tokens(self) -> Tensor:
        """All tokens of all answers and end of sentence, sorted, each once."""
        return (self.edges % SPAN).unique()

    def advance(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Nodes (N,) reached from nodes (N,) by tokens (N,)."""
        wanted = nodes * SPAN + tokens
        index = torch.searchsorted(self.edges, wanted).clamp_(max=self.edges.numel() - 1)
        return torch.where(self.edges[index] == wanted, self.targets[index], UNKNOWN)

    def allowed(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that may follow each node (N,), as pairs: index into nodes (M,), token (M,)."""
        first, counts = self.offsets[nodes], self.offsets[nodes + 1] - self.offsets[nodes]
        rows = torch.arange(nodes.numel(), device=nodes.device).repeat_interleave(counts)
        before = counts.cumsum(0) - counts  # pairs of earlier rows
        index = torch.arange(rows.numel(), device=nodes.device) - before[rows] + first[rows]
        return rows, self.edges[index] % SPAN

    def children(self, path: Sequence[int]) -> list[int]:
        """Tokens that may follow the tokens generated so far (begin of sentence left out), sorted."""
        node = torch.tensor([ROOT])
        for token in path:
            node = self.advance(node, torch.tensor([token]))
        return self.allowed(node)[1].tolist()
