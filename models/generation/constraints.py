"""What may come next: allowed ids, trie children, forced prefixes, n-gram blocking, length limits.

Shapes: B samples still running, rows = B * n for n beams each, U columns: all V ids or the allowed ones only.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.generation.candidates import ROOT, CandidateTrie
from models.generation.config import GenerationConfig
from models.generation.step import Candidates
from utils.constants import EOS, NUM_SPECIAL, PAD, UNK
from utils.errors import UserError


class _Phase(NamedTuple):
    """What holds for all rows of a step; it changes a few times in a search."""

    inside_prefix: bool = False
    too_short: bool = False
    last: bool = False


class TokenRules:
    """The rules of one search, as masks on logits and log-probabilities.

    Args:
        config: the options. vocab_size: V. max_len: tokens before end of sentence.
        prefix: (B, P) tokens each output begins with, right-padded; P may be 0.
        trie: the closed answer set, or None.
        source_lengths: (B,) with `match_source_len`, else None.

    Attributes:
        ids: (U,) sorted ids whose logits this step needs, 0..3 among them; None = all of them.

    Raises:
        UserError: a range beyond the vocabulary, with a trie, or that leaves tokens of a prefix out.
    """

    def __init__(
        self,
        config: GenerationConfig,
        vocab_size: int,
        max_len: int,
        prefix: Tensor,
        trie: CandidateTrie | None,
        source_lengths: Tensor | None,
    ) -> None:
        device = prefix.device
        self.config, self.max_len = config, max_len
        self.prefix, self.prefix_lengths = prefix, prefix.ne(PAD).sum(1)
        self.lengths = source_lengths
        self.trie = None if trie is None else trie.to(device)
        self.nodes = torch.full((prefix.size(0), 1), ROOT, device=device)  # (B, n)
        self.phase = _Phase()
        self.ids: Tensor | None = None
        self.allowed: Tensor | None = None
        self.allowed_from = 0
        # Always among the columns and sorted first: the column of a special token is its id.
        special = torch.arange(NUM_SPECIAL, device=device)
        if config.token_range is not None:
            first, last = config.token_range
            self._check_range(last, vocab_size)
            self.allowed = torch.cat([special, torch.arange(max(first, NUM_SPECIAL), last, device=device)])
            if not bool(torch.isin(prefix, self.allowed).all()):
                raise UserError(f"Prefix tokens lie outside --constraint-range {config.constraint_range}: widen it.")
        elif self.trie is not None:
            self.allowed = torch.cat([special, self.trie.tokens()]).unique()
            self.allowed_from = prefix.size(1)  # inside a prefix every token is allowed

    def _check_range(self, last: int, vocab_size: int) -> None:
        if self.trie is not None:
            raise UserError("--constraint-range and a closed answer set cannot be combined: leave one out.")
        if last > vocab_size:
            raise UserError(f"--constraint-range ends at {last}, beyond the {vocab_size} token ids: lower it.")
        if last <= NUM_SPECIAL:
            raise UserError(f"--constraint-range {self.config.constraint_range} contains no text ids: raise its end.")

    def enter(self, step: int) -> None:
        """The rules that are in force from now on: those of the choice of token `step`."""
        self.phase = _Phase(
            inside_prefix=step < min(self.prefix.size(1), self.max_len),
            too_short=step < self.config.min_len,
            last=step >= self.max_len,
        )
        self.ids = None if self.config.zero_shot or step < self.allowed_from else self.allowed

    def in_force(self) -> tuple[bool, ...]:
        """What `enter` decided: steps of which it is the same do the same."""
        return *self.phase, self.ids is None

    def before_softmax(self, logits: Tensor, position: Tensor) -> None:
        """Forbids tokens whose share the others take; in place on (rows, U), position (1,) of the last tokens."""
        if self.trie is not None and not self.config.zero_shot:
            self._forbid_off_trie(logits, position)

    def after_softmax(self, log_probs: Tensor, tokens: Callable[[], Tensor], position: Tensor) -> None:
        """Forbids tokens without raising the others; in place on (rows, U).

        tokens: gives those generated so far, (rows, T), begin of sentence first, the last one at `position` (1,). A
        forced token is exempt from all rules. A row that is not numbers stays so.
        """
        config, phase = self.config, self.phase
        if config.zero_shot:
            self._forbid_in_full_vocabulary(log_probs, position)
        if config.unkpen:
            log_probs[:, UNK] -= config.unkpen
        # Taken before the rules below, and written back after them: they must not touch a forced token.
        forced = self._forced(log_probs, position) if phase.inside_prefix else None
        log_probs[:, PAD] = -math.inf
        if not phase.inside_prefix and phase.too_short:
            log_probs[:, EOS] = -math.inf
        if config.gen_code and not phase.last:  # an image has all its codes, then the end
            log_probs[:, :NUM_SPECIAL] = -math.inf
        self._limit_length(log_probs, position)
        if config.no_repeat_ngram_size > 0:
            block_repeated_ngrams(log_probs, tokens(), config.no_repeat_ngram_size, position, self.ids)
        if forced is not None:
            active, columns, values = forced
            log_probs.masked_fill_(active, -math.inf)
            log_probs.scatter_(1, columns, values)

    def advance(self, chosen: Candidates, position: Tensor) -> None:
        """Follows the search: the beams that were chosen (B, K), after the tokens at a position (1,)."""
        if self.trie is not None:
            nodes = self.nodes.gather(1, chosen.beams)
            started = (position >= self.prefix_lengths).unsqueeze(1)
            self.nodes = renew(self.nodes, torch.where(started, self.trie.advance(nodes, chosen.tokens), nodes))

    def keep_samples(self, samples: Tensor) -> None:
        """Goes on with some samples only (1-D indices)."""
        self.prefix, self.prefix_lengths = self.prefix[samples], self.prefix_lengths[samples]
        self.lengths = None if self.lengths is None else self.lengths[samples]
        self.nodes = self.nodes[samples]

    @staticmethod
    def _by_row(values: Tensor, rows: Tensor) -> Tensor:
        """Repeats values (B,) for the beams of each sample; rows: any tensor with a row in its first dimension."""
        B = values.size(0)
        return values.unsqueeze(1).expand(-1, rows.size(0) // B).flatten()

    def _forbid_off_trie(self, values: Tensor, position: Tensor) -> None:
        assert self.trie is not None
        # Rows inside a forced prefix are free: the trie holds answers alone, and each sample's begins behind its own
        # prefix.
        tokens = self.trie.next_tokens(self.nodes.flatten(), PAD)
        bound = self._by_row(position >= self.prefix_lengths, values)
        forbidden = bound.unsqueeze(1).repeat(1, values.size(1))
        forbidden.scatter_(1, columns_of(tokens, self.ids), False)
        forbidden[:, PAD] = bound  # it is no continuation, only a filler
        values.masked_fill_(forbidden, -math.inf)

    def _forbid_in_full_vocabulary(self, log_probs: Tensor, position: Tensor) -> None:
        if self.trie is not None:
            self._forbid_off_trie(log_probs, position)
        elif self.allowed is not None:
            forbidden = torch.ones(log_probs.size(1), dtype=torch.bool, device=log_probs.device)
            forbidden[self.allowed] = False
            log_probs.masked_fill_(forbidden, -math.inf)

    def _forced(self, log_probs: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, 1) each: is a token forced, its column (else that of padding), its log-probability (else -inf)."""
        tokens = self._by_row(self.prefix.index_select(1, position).squeeze(1), log_probs)
        active, columns = tokens.ne(PAD).unsqueeze(1), columns_of(tokens, self.ids).unsqueeze(1)
        return active, columns, log_probs.gather(1, columns).masked_fill(~active, -math.inf)

    def _limit_length(self, log_probs: Tensor, position: Tensor) -> None:
        """At the last step only end of sentence is left; as long as the source, it comes there and nowhere else."""
        if self.lengths is not None:
            last = self._by_row(position >= self.lengths, log_probs)
            log_probs.masked_fill_(last.unsqueeze(1), -math.inf)
            log_probs[:, EOS] = torch.where(last, 0.0, -math.inf)  # it was not a choice, so it costs nothing
        elif self.phase.last:
            end = log_probs[:, EOS].clone()
            log_probs.fill_(-math.inf)
            log_probs[:, EOS] = end


def renew(old: Tensor, new: Tensor) -> Tensor:
    """A state's new value, at the old one's address where the shape is the same."""
    return old.copy_(new) if old.shape == new.shape else new


def columns_of(tokens: Tensor, ids: Tensor | None) -> Tensor:
    """Columns of tokens among sorted ids (U,); of a token that is not there, the column of padding."""
    if ids is None:
        return tokens
    # The column of padding is forbidden at every step, so what is not there can be written to it without harm, and
    # shapes need no mask.
    index = torch.searchsorted(ids, tokens).clamp_(max=ids.numel() - 1)
    return torch.where(ids[index] == tokens, index, PAD)


def block_repeated_ngrams(
    log_probs: Tensor, tokens: Tensor, size: int, position: Tensor, ids: Tensor | None = None
) -> None:
    """Forbids each token that would complete an n-gram for the second time; in place on (rows, U).

    tokens: (rows, T), the last ones at `position` (1,), padding behind them; ids: (U,) what the columns stand for,
    None = themselves. Padding is forbidden anyway.
    """
    if tokens.size(1) < size:
        return
    # An n-gram of the past whose first n - 1 tokens are the last n - 1 so far forbids its last token. Begin of sentence
    # counts as a token here, as in the original.
    ngrams = tokens.unfold(1, size, 1)  # (rows, T - size + 1, size)
    index = position + torch.arange(2 - size, 1, device=tokens.device)
    latest = tokens.index_select(1, index.clamp(min=0))  # (rows, size - 1)
    seen = (ngrams[..., :-1] == latest.unsqueeze(1)).all(-1) & (position >= size - 1)
    repeats = columns_of(ngrams[..., -1].masked_fill(~seen, PAD).contiguous(), ids)
    log_probs.scatter_(1, repeats, -math.inf)
