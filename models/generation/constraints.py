"""What may come next: allowed ids, trie children, forced prefixes, n-gram blocking, length limits.

Shapes: B samples still running, rows = B * n for n beams each, U columns: all V ids or the allowed ones only.
"""

import math

import torch
from torch import Tensor

from models.generation.candidates import ROOT, CandidateTrie
from models.generation.config import GenerationConfig
from utils.constants import EOS, NUM_SPECIAL, PAD, UNK
from utils.errors import UserError


class TokenRules:
    """The rules of one search, as masks on logits and log-probabilities.

    Args:
        config: the options. vocab_size: V. max_len: tokens before end of sentence.
        prefix: (B, P) tokens each output begins with, right-padded; P may be 0.
        trie: the closed answer set, or None.
        source_lengths: (B,) with `match_source_len`, else None.

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
        self.nodes = torch.full((prefix.size(0),), ROOT, device=device)
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
            raise UserError("--constraint-range and a closed answer set exclude each other: leave one out.")
        if last > vocab_size:
            raise UserError(f"--constraint-range ends at {last}, beyond the {vocab_size} token ids: lower it.")

    def ids(self, step: int) -> Tensor | None:
        """Sorted ids (U,) whose logits this step needs, 0..3 among them; None = all of them."""
        return None if self.config.zero_shot or step < self.allowed_from else self.allowed

    def before_softmax(self, logits: Tensor, step: int) -> None:
        """Forbids tokens whose share the others take; in place on (rows, U)."""
        if self.trie is not None and not self.config.zero_shot:
            self._forbid_off_trie(logits, step)

    def after_softmax(self, log_probs: Tensor, tokens: Tensor, step: int) -> None:
        """Forbids tokens without raising the others; in place on (rows, U).

        tokens: (rows, step + 1) generated so far, begin of sentence first. A forced token is exempt from all rules.
        """
        config = self.config
        # One column tells: log_softmax makes the whole row NaN if it holds NaN or no finite logit. Such a row has no
        # way on, which the search reports; NaN itself would win every comparison of topk.
        broken = log_probs[:, EOS].isnan()
        if bool(broken.any()):
            log_probs[broken] = -math.inf
        if config.zero_shot:
            self._forbid_in_full_vocabulary(log_probs, step)
        if config.unkpen:
            log_probs[:, UNK] -= config.unkpen
        inside_prefix = step < min(self.prefix.size(1), self.max_len)
        # Taken before the rules below, and written back after them: they must not touch a forced token.
        forced = self._forced(log_probs, step) if inside_prefix else None
        log_probs[:, PAD] = -math.inf
        if not inside_prefix and step < config.min_len:
            log_probs[:, EOS] = -math.inf
        if config.gen_code and step < self.max_len:  # an image has all its codes, then the end
            log_probs[:, :NUM_SPECIAL] = -math.inf
        self._limit_length(log_probs, step)
        if config.no_repeat_ngram_size > 0:
            block_repeated_ngrams(log_probs, tokens, config.no_repeat_ngram_size, self.ids(step))
        if forced is not None:
            active, columns, values = forced
            log_probs.masked_fill_(active, -math.inf)
            log_probs.scatter_(1, columns, values)

    def advance(self, step: int, rows: Tensor, tokens: Tensor, samples: Tensor | None) -> None:
        """Follows the search: row i continues what was row rows[i] with token tokens[i].

        samples: indices of the samples that continue, None = all of them.
        """
        if samples is not None:
            self.prefix, self.prefix_lengths = self.prefix[samples], self.prefix_lengths[samples]
            self.lengths = None if self.lengths is None else self.lengths[samples]
        if self.trie is not None:
            nodes = self.nodes[rows]
            started = self._by_row(step >= self.prefix_lengths, nodes)
            self.nodes = torch.where(started, self.trie.advance(nodes, tokens), nodes)

    @staticmethod
    def _by_row(values: Tensor, rows: Tensor) -> Tensor:
        """Repeats values (B,) for the beams of each sample; rows: any tensor with a row in its first dimension."""
        return values.repeat_interleave(rows.size(0) // values.size(0))

    def _forbid_off_trie(self, values: Tensor, step: int) -> None:
        assert self.trie is not None
        # Rows inside a forced prefix are free: the trie holds answers alone, and each sample's begins behind its own
        # prefix.
        rows, tokens = self.trie.allowed(self.nodes)
        free = self._by_row(step < self.prefix_lengths, values)
        forbidden = (~free).unsqueeze(1).repeat(1, values.size(1))
        forbidden[rows, columns_of(tokens, self.ids(step))] = False
        values.masked_fill_(forbidden, -math.inf)

    def _forbid_in_full_vocabulary(self, log_probs: Tensor, step: int) -> None:
        if self.trie is not None:
            self._forbid_off_trie(log_probs, step)
        elif self.allowed is not None:
            forbidden = torch.ones(log_probs.size(1), dtype=torch.bool, device=log_probs.device)
            forbidden[self.allowed] = False
            log_probs.masked_fill_(forbidden, -math.inf)

    def _forced(self, log_probs: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, 1) each: is a token forced, its column (else that of padding), its log-probability (else -inf)."""
        tokens = self._by_row(self.prefix[:, step], log_probs)
        active, columns = tokens.ne(PAD).unsqueeze(1), columns_of(tokens, self.ids(step)).unsqueeze(1)
        return active, columns, log_probs.gather(1, columns).masked_fill(~active, -math.inf)

    def _limit_length(self, log_probs: Tensor, step: int) -> None:
        """At the last step only end of sentence is left; as long as the source, it comes there and nowhere else."""
        if self.lengths is not None:
            last = self._by_row(step >= self.lengths, log_probs)
            log_probs.masked_fill_(last.unsqueeze(1), -math.inf)
            log_probs[:, EOS] = torch.where(last, 0.0, -math.inf)  # it was not a choice, so it costs nothing
        elif step >= self.max_len:
            end = log_probs[:, EOS].clone()
            log_probs.fill_(-math.inf)
            log_probs[:, EOS] = end


def columns_of(tokens: Tensor, ids: Tensor | None) -> Tensor:
    """Columns of tokens among sorted ids (U,); of a token that is not there, the column of padding."""
    if ids is None:
        return tokens
    # The column of padding is forbidden at every step, so what is not there can be written to it without harm, and
    # shapes need no mask.
    index = torch.searchsorted(ids, tokens).clamp_(max=ids.numel() - 1)
    return torch.where(ids[index] == tokens, index, PAD)


def block_repeated_ngrams(log_probs: Tensor, tokens: Tensor, size: int, ids: Tensor | None = None) -> None:
    """Forbids each token that would complete an n-gram for the second time; in place on (rows, U).

    tokens: (rows, T) so far; ids: (U,) what the columns stand for, None = themselves. Padding is forbidden anyway.
    """
    T = tokens.size(1)
    if T < size:
        return
    # An n-gram of the past whose first n - 1 tokens are the last n - 1 so far forbids its last token. Begin of sentence
    # counts as a token here, as in the original.
    ngrams = tokens.unfold(1, size, 1)  # (rows, T - size + 1, size)
    seen = (ngrams[..., :-1] == tokens[:, None, T - size + 1 :]).all(-1)
    repeats = columns_of(ngrams[..., -1].masked_fill(~seen, PAD).contiguous(), ids)
    log_probs.scatter_(1, repeats, -math.inf)
