"""generate(): the loop around the model; strategies differ in the step they call.

Shapes: B samples, K beams, n beams of a sample now (1 before the first choice, then K), rows = B * n, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.generation.candidates import CandidateTrie
from models.generation.config import GenerationConfig
from models.generation.constraints import TokenRules
from models.generation.ensemble import Ensemble, retained_dropout
from models.generation.step import Candidates, make_step, survivors
from models.ofa import OFA
from utils.constants import BOS, EOS, PAD
from utils.errors import UserError


@dataclass
class Hypothesis:
    """One finished output.

    Attributes:
        tokens: (T,) without begin and with end of sentence; a forced prefix is part of it.
        score: sum of log-probabilities / T ** lenpen, or the sum itself with `unnormalized`.
        positional_scores: (T,) log-probability of each token.
    """

    tokens: Tensor
    score: float
    positional_scores: Tensor

    def log_prob(self, given: int = 0) -> float:
        """Sum of the tokens' log-probabilities, whatever the length penalty, without `given` forced ones in front."""
        return self.positional_scores[given:].sum().item()

    def mean_log_prob(self, given: int = 0) -> float:
        """Mean log-probability of a token, end of sentence included: comparable between lengths."""
        return self.positional_scores[given:].mean().item()


@torch.no_grad()
def generate(
    model: OFA | Sequence[OFA],
    inputs: Mapping[str, Any],
    config: GenerationConfig,
    trie: CandidateTrie | None = None,
    prefix_tokens: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> list[list[Hypothesis]]:
    """Decodes a batch.

    Args:
        model: one model, or several over one vocabulary (an ensemble: the mean of their probabilities).
        inputs: keyword arguments of `OFA.encode`: src_tokens (B, L), patch_images (B, 3, R, R), ...
        config: the options.
        trie: outputs are answers of this set only.
        prefix_tokens: (B, P) tokens each output begins with, right-padded with 1.
        generators: with sampling, a source of random numbers for each sample, on the inputs' device: what is drawn
            for a sample then does not depend on the rest of the batch. None: PyTorch's own for all.

    Returns:
        For each sample up to K hypotheses, best first; fewer where fewer outputs are possible, none where the
        model's outputs are not numbers (`require_hypotheses`).

    Raises:
        UserError: options that contradict each other or the inputs, or that leave no output possible.
        ValueError: outputs longer than the model has positions for.
    """
    models = [model] if isinstance(model, OFA) else list(model)
    source = inputs["src_tokens"]
    lengths = (source.ne(PAD) & source.ne(EOS)).sum(1) if config.match_source_len else None
    max_len = int(config.max_len_a * source.size(1) + config.max_len_b) if lengths is None else int(lengths.max())
    if config.min_len > max_len:
        raise UserError(f"--min-len {config.min_len} is above the longest output of {max_len} tokens (--max-len-b).")
    if generators is not None and not config.sampling:
        raise UserError("Random numbers have no effect on a search: add --sampling.")
    if prefix_tokens is None:
        prefix_tokens = source[:, :0]
    prefix_tokens = prefix_tokens.to(source.device)
    rules = TokenRules(config, models[0].config.vocab_size, max_len, prefix_tokens, trie, lengths)
    with retained_dropout(models, config.retain_dropout):
        ensemble = Ensemble(models, inputs, max_len + 1, config.gen_code, config.temperature)
        return _Search(ensemble, rules, config, max_len, generators).run(prefix_tokens)


def require_hypotheses(found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
    """What `generate` found, if every sample has a hypothesis.

    Raises:
        UserError: one has none, since the model's outputs are not numbers.
    """
    if not all(found):
        raise UserError("The model's output for a sample is not a number: check the weights, or leave out --fp16.")
    return found


class _Search:
    """One search over a batch: what has been generated so far, and what is finished."""

    def __init__(
        self,
        ensemble: Ensemble,
        rules: TokenRules,
        config: GenerationConfig,
        max_len: int,
        generators: Sequence[torch.Generator] | None,
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
