"""The search as it was before its state moved to tensors of fixed shape: plain, step by step, rows of a batch dropped.

`generate` must give the same outputs, token for token, with every combination of options.
"""

import math
from typing import Any

import torch
from torch import Tensor

from models.generation import CandidateTrie, GenerationConfig, Hypothesis
from models.generation.candidates import ROOT, SPAN
from models.generation.constraints import columns_of
from models.generation.step import Candidates, make_step, survivors
from utils.constants import BOS, EOS, NUM_SPECIAL, PAD, UNK
from utils.errors import UserError


@torch.no_grad()
def generate(
    models: Any, inputs: Any, config: GenerationConfig, trie: Any = None, prefix_tokens: Any = None,
    generators: Any = None,
) -> list[list[Hypothesis]]:  # fmt: skip
    """As `models.generation.generate`."""
    source = inputs["src_tokens"]
    lengths = (source.ne(PAD) & source.ne(EOS)).sum(1) if config.match_source_len else None
    max_len = int(config.max_len_a * source.size(1) + config.max_len_b) if lengths is None else int(lengths.max())
    prefix_tokens = source[:, :0] if prefix_tokens is None else prefix_tokens
    rules = TokenRules(config, max_len, prefix_tokens, trie, lengths)
    return _Search(Ensemble(models, inputs, max_len + 1, config), rules, config, max_len, generators).run(prefix_tokens)


def allowed(trie: CandidateTrie, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that may follow each node (N,), as pairs: index into nodes (M,), token (M,)."""
    rows, index = trie.outgoing(nodes)
    return rows, trie.edges[index] % SPAN


class Ensemble:
    """Models and their decoding states, stepped in parallel."""

    def __init__(self, models: Any, inputs: Any, capacity: int, config: GenerationConfig) -> None:
        self.models, self.temperature = models, config.temperature
        self.states = [model.start(model.encode(**inputs), 1, capacity, config.gen_code) for model in models]

    def step(self, tokens: Tensor) -> list[Tensor]:
        return [model.step(tokens, state) for model, state in zip(self.models, self.states, strict=True)]

    def log_probs(self, features: list[Tensor], rules: Any, step: int) -> Tensor:
        parts = []
        for model, x in zip(self.models, features, strict=True):
            logits = model.project(x, rules.ids(step)) / self.temperature
            rules.before_softmax(logits, step)
            parts.append(logits.log_softmax(-1, dtype=torch.float32))
        return parts[0] if len(parts) == 1 else torch.stack(parts).logsumexp(0) - math.log(len(parts))

    def keep_samples(self, samples: Tensor) -> None:
        for state in self.states:
            state.keep_samples(samples)

    def reorder(self, rows: Tensor) -> None:
        for state in self.states:
            state.reorder(rows)


class TokenRules:
    """The rules of one search, as masks on logits and log-probabilities."""

    def __init__(
        self,
        config: GenerationConfig,
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
        special = torch.arange(NUM_SPECIAL)
        if config.token_range is not None:
            first, last = config.token_range
            self.allowed = torch.cat([special, torch.arange(max(first, NUM_SPECIAL), last)])
        elif self.trie is not None:
            self.allowed = torch.cat([special, self.trie.tokens()]).unique()
            self.allowed_from = prefix.size(1)  # inside a prefix every token is allowed

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
        rows, tokens = allowed(self.trie, self.nodes)
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


class _Search:
    """One search over a batch: what has been generated so far, and what is finished."""

    def __init__(
        self,
        ensemble: Any,
        rules: TokenRules,
        config: GenerationConfig,
        max_len: int,
        generators: Any,
    ) -> None:
        self.ensemble, self.rules, self.config, self.max_len = ensemble, rules, config, max_len
        self.generators = generators
        self.select = make_step(config)
        self.beam = min(config.beam, ensemble.models[0].config.vocab_size - 1)

    def run(self, prefix: Tensor) -> list[list[Hypothesis]]:
        """Hypotheses of each sample, best first; prefix (B, P)."""
        B = prefix.size(0)
        self.finished: list[list[Hypothesis]] = [[] for _ in range(B)]
        self.samples = list(range(B))  # which samples the rows belong to
        self._start(prefix)
        for step in range(self.tokens.size(1) - 1, self.max_len + 1):
            log_probs = self._log_probs(self.features, self.tokens, step)
            B, n = self.scores.shape
            own = {"generators": [self.generators[sample] for sample in self.samples]} if self.generators else {}
            candidates = self.select(log_probs.unflatten(0, (B, n)), self.scores, self.beam, **own)
            if (ids := self.rules.ids(step)) is not None:
                candidates.tokens = ids[candidates.tokens]
            ended = candidates.tokens.eq(EOS) & candidates.scores.isfinite()
            self._finish(candidates, ended[:, : self.beam])
            if not self._advance(survivors(candidates, ended, self.beam), step):
                break
        return [sorted(found, key=lambda h: h.score, reverse=True) for found in self.finished]

    def _start(self, prefix: Tensor) -> None:
        """Feeds begin of sentence and, at once, the prefix tokens that all samples are forced to begin with."""
        shared = self._shared_prefix(prefix)
        self.tokens = torch.cat([prefix.new_full((prefix.size(0), 1), BOS), prefix[:, :shared]], dim=1)
        features = self.ensemble.step(self.tokens)
        self.scores = torch.zeros(prefix.size(0), 1, device=prefix.device)  # (B, n) cumulative
        history = [self.scores[:, :0]]
        for step in range(shared):
            log_probs = self._log_probs([x[:, step] for x in features], self.tokens[:, : step + 1], step)
            self.scores = self.scores + log_probs.amax(1, keepdim=True)  # all but the forced token are -inf
            history.append(self.scores)
        self.history = torch.cat(history, dim=1)  # (rows, T) cumulative scores of all tokens so far
        self.features = [x[:, -1] for x in features]

    def _shared_prefix(self, prefix: Tensor) -> int:
        """How many steps are forced in all samples; diversity penalties change scores even then, so they count 0."""
        if self.config.diverse_beam_groups > 0 or self.config.diversity_rate > -1:
            return 0
        inside = prefix.ne(PAD) & prefix.ne(EOS)
        return min(int(inside.long().cumprod(1).sum(1).min()), self.max_len)

    def _log_probs(self, features: list[Tensor], tokens: Tensor, step: int) -> Tensor:
        """Log-probabilities (rows, U) of what may follow tokens (rows, step + 1); -inf forbids."""
        log_probs = self.ensemble.log_probs(features, self.rules, step)
        self.rules.after_softmax(log_probs, tokens, step)
        return log_probs

    def _finish(self, candidates: Candidates, ended: Tensor) -> None:
        """Keeps candidates that have ended (B, K) as hypotheses, up to K of a sample."""
        n = self.scores.size(1)
        for b, rank in ended.nonzero().tolist():
            found = self.finished[self.samples[b]]
            if len(found) == self.beam:
                continue
            row = b * n + candidates.beams[b, rank]
            tokens = torch.cat([self.tokens[row, 1:], candidates.tokens[b, rank, None]])
            total = torch.cat([self.history[row], candidates.scores[b, rank, None]])
            length = 1.0 if self.config.unnormalized else tokens.numel() ** self.config.lenpen
            positional = total.diff(prepend=total.new_zeros(1))
            found.append(Hypothesis(tokens, total[-1].item() / length, positional))

    def _check_stuck(self, stuck: list[int]) -> None:
        """UserError if one of these samples (indices into the current ones) has numbers but no way to continue."""
        n = self.scores.size(1)
        for b in stuck:
            if all(bool(x[b * n : (b + 1) * n].isfinite().all()) for x in self.features):
                what = "output" if self.rules.trie is None else "answer of the closed set"
                raise UserError(
                    f"No {what} of {self.config.min_len} to {self.max_len} tokens is possible: lower --min-len, "
                    "raise --max-len-b, or loosen --no-repeat-ngram-size and --constraint-range."
                )

    def _advance(self, chosen: Candidates, step: int) -> bool:
        """Feeds the tokens of the surviving beams (B, K), dropping finished samples; False when none is left."""
        alive = (chosen.scores.isfinite().any(1) & (step < self.max_len)).tolist()
        self._check_stuck([b for b, sample in enumerate(self.samples) if not alive[b] and not self.finished[sample]])
        going = [b for b, sample in enumerate(self.samples) if alive[b] and len(self.finished[sample]) < self.beam]
        if not going:
            return False
        n, device = self.scores.size(1), chosen.scores.device
        kept = torch.tensor(going, device=device)
        some = len(going) < len(self.samples)
        beams, tokens = chosen.beams[kept], chosen.tokens[kept].flatten()
        rows = (kept.unsqueeze(1) * n + beams).flatten()
        if some:
            self.ensemble.keep_samples(kept)
            self.samples = [self.samples[b] for b in going]
        moved = (torch.arange(len(going), device=device).unsqueeze(1) * n + beams).flatten()
        if n != self.beam or not torch.equal(moved, torch.arange(moved.numel(), device=device)):
            self.ensemble.reorder(moved)
        self.rules.advance(step, rows, tokens, kept if some else None)
        self.scores = chosen.scores[kept]
        self.tokens = torch.cat([self.tokens[rows], tokens.unsqueeze(1)], dim=1)
        self.history = torch.cat([self.history[rows], self.scores.flatten().unsqueeze(1)], dim=1)
        self.features = [x[:, -1] for x in self.ensemble.step(tokens.unsqueeze(1))]
        return True
