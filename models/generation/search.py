"""generate(): the loop around the model; strategies differ in the step they call.

Everything a step reads and writes is a tensor of fixed shape, and a step asks for no number, so that a GPU runs ahead
of Python: `_Search.step`. The loop around it asks now and then whether all is finished.

Shapes: B samples, K beams, n beams of a sample now (1 before the first choice, then K), rows = B * n, T tokens, the
begin of sentence and end of sentence included.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from models.generation.candidates import CandidateTrie
from models.generation.config import GenerationConfig
from models.generation.constraints import TokenRules, renew
from models.generation.ensemble import Ensemble, retained_dropout
from models.generation.replay import Replay, can_record
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
        raise UserError("Random generators have no effect on beam search: add --sampling.")
    if prefix_tokens is None:
        prefix_tokens = source[:, :0]
    prefix_tokens = prefix_tokens.to(source.device)
    rules = TokenRules(config, models[0].config.vocab_size, max_len, prefix_tokens, trie, lengths)
    beam = min(config.beam, models[0].config.vocab_size - 1)
    shared = _shared_prefix(config, prefix_tokens, max_len)
    prompt = torch.cat([source.new_full((source.size(0), 1), BOS), prefix_tokens[:, :shared]], dim=1)
    with retained_dropout(models, config.retain_dropout):
        ensemble = Ensemble(models, inputs, prompt, beam, max_len + 1, config.gen_code, config.temperature)
        return _Search(ensemble, rules, config, max_len, generators).run(prompt)


def require_hypotheses(found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
    """What `generate` found, if every sample has a hypothesis.

    Raises:
        UserError: one has none, since the model's outputs are not numbers.
    """
    if not all(found):
        raise UserError("The model's output for a sample is not a number: check the weights, or leave out --fp16.")
    return found


def _shared_prefix(config: GenerationConfig, prefix: Tensor, max_len: int) -> int:
    """How many tokens are forced in all samples; diversity penalties change scores even then, so they count 0."""
    if config.diverse_beam_groups > 0 or config.diversity_rate > -1 or not prefix.size(1):
        return 0
    inside = prefix.ne(PAD) & prefix.ne(EOS)
    return min(int(inside.long().cumprod(1).sum(1).min()), max_len)


@dataclass
class _Beams:
    """What a search knows, on the device; steps write in place.

    Attributes:
        scores: (B, n) cumulative log-probabilities. last: (B, n) tokens that are fed next.
        past: (B, K, T) beam in which a beam's past had its token of each position; -1 behind the last one.
        tokens, totals, parents: (B, T, K) what was chosen at each position: token, score, and the beam it continues.
        count: (B,) finished outputs. ends: (B, K + 1) where they end: position * K + beam they continue; scores in
            `end_scores`. The last column takes what is not kept.
    """

    scores: Tensor
    last: Tensor
    past: Tensor
    tokens: Tensor
    totals: Tensor
    parents: Tensor
    count: Tensor
    ends: Tensor
    end_scores: Tensor

    @classmethod
    def start(cls, prompt: Tensor, beams: int, length: int) -> "_Beams":
        """After a prompt (B, P): its tokens lie in beam 0."""
        (B, P), device = prompt.shape, prompt.device
        table = torch.zeros(B, length, beams, dtype=torch.long, device=device)
        past = torch.full((B, beams, length), -1, device=device)
        past[..., :P] = 0
        tokens = table.clone()
        tokens[:, :P] = prompt.unsqueeze(2)
        ends, totals = table[:, 0].new_zeros(B, beams + 1), torch.zeros(B, length, beams, device=device)
        scores = torch.zeros(B, 1, device=device)
        return cls(
            scores, prompt[:, -1:], past, tokens, totals, table, table[:, 0, 0].clone(), ends, ends.to(totals.dtype)
        )

    def select(self, samples: Tensor) -> None:
        """Goes on with some samples only (1-D indices)."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name).index_select(0, samples))


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
        self.beam = ensemble.beams
        self.replay: Replay | None = None

    def run(self, prompt: Tensor) -> list[list[Hypothesis]]:
        """Hypotheses of each sample, best first; prompt (B, P), what is forced in all of them."""
        first = prompt.size(1) - 1
        self.begin(prompt)
        # On an accelerator asking stops the queue of work; a step too many changes nothing.
        interval = 1 if prompt.device.type == "cpu" else 4
        if self.ensemble.graphs and can_record(prompt.device) and self.generators is None:
            self.replay = Replay(self.step, self.max_len + 1, self.rules.in_force)
        take_step = self.step if self.replay is None else self.replay.step
        for step in range(first + 1, self.max_len + 1):
            if (step - first) % interval == 0 and not self._continue(step):
                break
            self.prepare(step)
            take_step(step + 1)
        else:
            self._continue(self.max_len + 1)
        self._collect(range(len(self.samples)))
        return [sorted(found, key=lambda h: h.score, reverse=True) for found in self.found]

    def begin(self, prompt: Tensor) -> None:
        """The choice after the prompt (B, P)."""
        B, P = prompt.shape
        self.found: list[list[Hypothesis]] = [[] for _ in range(B)]
        self.samples = list(range(B))  # which samples the rows belong to
        self.beams = _Beams.start(prompt, self.beam, self.max_len + 2)
        self.position = torch.zeros(1, dtype=torch.long, device=prompt.device)  # of the last tokens
        self.beam_ids = torch.arange(self.beam, device=prompt.device).view(1, 1, -1)
        self._score_prompt(P - 1)
        self.rules.enter(P - 1)
        self._choose([x[:, -1:] for x in self.ensemble.prompt_features])

    def _score_prompt(self, length: int) -> None:
        """Scores of the forced tokens: all others of their steps are forbidden."""
        beams = self.beams
        for step in range(length):
            self.rules.enter(step)
            log_probs = self._log_probs([x[:, step : step + 1] for x in self.ensemble.prompt_features])
            beams.scores = beams.scores + log_probs.amax(1, keepdim=True)  # all but the forced token are -inf
            self.position += 1
            beams.totals[:, step + 1] = beams.scores

    def prepare(self, step: int) -> None:
        """What of a step is not tensors: which rules are in force, and biases that are made for many steps at once."""
        self.rules.enter(step)
        self.ensemble.prepare(step)

    def step(self, length: int) -> None:
        """Feeds the last tokens and chooses the next, looking back at `length` positions at most."""
        self._choose(self.ensemble.step(self.beams.last, self.beams.past, length))

    def _log_probs(self, features: list[Tensor]) -> Tensor:
        """Features (B, n, C) -> log-probabilities (rows, U) of what may follow; -inf forbids."""
        log_probs = self.ensemble.log_probs([x.flatten(0, 1) for x in features], self.rules, self.position)
        self.rules.after_softmax(log_probs, self._tokens_so_far, self.position)
        return log_probs

    def _tokens_so_far(self) -> Tensor:
        """(rows, T) tokens of each beam, begin of sentence first; padding behind the last ones."""
        n = self.beams.scores.size(1)
        past = self.beams.past[:, :n].transpose(1, 2)  # (B, T, n)
        tokens = self.beams.tokens.gather(2, past.clamp(min=0)).masked_fill(past < 0, PAD)
        return tokens.transpose(1, 2).flatten(0, 1)

    def _choose(self, features: list[Tensor]) -> None:
        """The continuations of all beams: those that end are noted, the best of the others are the beams now."""
        beams, K = self.beams, self.beam
        self.features = features
        log_probs = self._log_probs(features)
        own = {"generators": [self.generators[sample] for sample in self.samples]} if self.generators else {}
        candidates = self.select(log_probs.unflatten(0, beams.scores.shape), beams.scores, K, **own)
        if (ids := self.rules.ids) is not None:
            candidates.tokens = ids[candidates.tokens]
        ended = candidates.tokens.eq(EOS) & (candidates.scores > -math.inf)
        self._note_ends(candidates, ended[:, :K])
        chosen = survivors(candidates, ended, K)
        self.rules.advance(chosen, self.position)
        self.position += 1
        beams.past.copy_(beams.past.gather(1, chosen.beams.unsqueeze(2).expand_as(beams.past)))
        beams.past.index_copy_(2, self.position, self.beam_ids.transpose(1, 2).expand(len(self.samples), -1, -1))
        for table, new in ((beams.tokens, chosen.tokens), (beams.totals, chosen.scores), (beams.parents, chosen.beams)):
            table.index_copy_(1, self.position, new.unsqueeze(1))
        beams.scores, beams.last = renew(beams.scores, chosen.scores), renew(beams.last, chosen.tokens)

    def _note_ends(self, candidates: Candidates, ended: Tensor) -> None:
        """Keeps candidates that have ended (B, <= K), up to K of a sample."""
        beams, n = self.beams, ended.size(1)
        place = beams.count.unsqueeze(1) + ended.cumsum(1) - 1
        place = place.masked_fill(~ended, self.beam).clamp_(max=self.beam)
        beams.ends.scatter_(1, place, torch.add(candidates.beams[:, :n], self.position, alpha=self.beam))
        beams.end_scores.scatter_(1, place, candidates.scores[:, :n])
        beams.count.add_(ended.sum(1)).clamp_(max=self.beam)

    def _continue(self, step: int) -> bool:
        """Drops finished samples; False when none is left. The one place that waits for the device."""
        beams = self.beams
        alive = beams.scores.isfinite().any(1) & (step <= self.max_len)
        state = list(enumerate(torch.stack([alive.long(), beams.count], dim=1).tolist()))
        going = [b for b, (is_alive, count) in state if is_alive and count < self.beam]
        self._check_stuck([b for b, (is_alive, count) in state if not is_alive and not count])
        # Dropping samples makes later steps cheaper, and graphs have to be recorded again.
        worth = len(self.samples) - 1 if self.replay is None else len(self.samples) // 2
        if 0 < len(going) <= worth:
            gone = sorted({*range(len(self.samples))} - {*going})
            self._collect(gone)
            kept = torch.tensor(going, device=beams.scores.device)
            self.ensemble.keep_samples(kept)
            self.rules.keep_samples(kept)
            beams.select(kept)
            self.samples = [self.samples[b] for b in going]
            if self.replay is not None:
                self.replay.forget()
        return bool(going)

    def _check_stuck(self, stuck: list[int]) -> None:
        """UserError if one of these samples (indices into the current ones) has numbers but no way to continue."""
        for b in stuck:
            if all(bool(x[b].isfinite().all()) for x in self.features):
                what = "output" if self.rules.trie is None else "answer of the closed set"
                raise UserError(
                    f"No {what} of {self.config.min_len} to {self.max_len} tokens is possible: lower --min-len, "
                    "raise --max-len-b, or loosen --no-repeat-ngram-size and --constraint-range."
                )

    def _collect(self, which: Sequence[int]) -> None:
        """Makes hypotheses of the finished outputs of some samples (indices into the current ones)."""
        beams = self.beams
        counts = beams.count.tolist()
        places = [(b, rank) for b in which for rank in range(counts[b])]
        if not places:
            return
        b, rank = torch.tensor(places, device=beams.count.device).unbind(1)
        ends, end_scores = beams.ends[b, rank], beams.end_scores[b, rank]
        position, beam = ends // self.beam, ends % self.beam
        tokens = torch.full((len(places), beams.tokens.size(1)), EOS, device=b.device)
        totals = torch.zeros(tokens.shape, device=b.device)
        last = position.tolist()
        for at in range(max(last), 0, -1):  # back along the parents
            inside = position >= at
            tokens[:, at] = torch.where(inside, beams.tokens[b, at, beam], EOS)
            totals[:, at] = beams.totals[b, at, beam]
            beam = torch.where(inside, beams.parents[b, at, beam], beam)
        tokens, totals = tokens.roll(-1, 1), totals.roll(-1, 1)  # without begin of sentence
        for (sample, _), length, row, total, score in zip(places, last, tokens, totals, end_scores, strict=True):
            total = torch.cat([total[:length], score[None]])
            norm = 1.0 if self.config.unnormalized else (length + 1) ** self.config.lenpen
            positional = total.diff(prepend=total.new_zeros(1))
            hypothesis = Hypothesis(row[: length + 1].clone(), total[-1].item() / norm, positional)
            self.found[self.samples[sample]].append(hypothesis)
