"""One step of each search strategy: log-probabilities in, survivors out; no model in sight.

Shapes: B samples, n beams of each (1 at the first step, K later), U tokens to choose from, N candidates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from models.generation.config import GenerationConfig


@dataclass
class Candidates:
    """Continuations proposed for each sample, best first.

    Attributes:
        scores: (B, N) cumulative log-probabilities. tokens, beams: (B, N) last token and the beam it continues.
    """

    scores: Tensor
    tokens: Tensor
    beams: Tensor


# log_probs (B, n, U), scores of the beams (B, n), K -> candidates; sampling takes `generators` too
SelectionStep = Callable[..., Candidates]


def make_step(config: GenerationConfig) -> SelectionStep:
    """The selection step of the strategy that the options name."""
    if config.sampling:
        return partial(sampling_step, top_k=config.sampling_topk, top_p=config.sampling_topp)
    if config.diverse_beam_groups > 0:
        return partial(diverse_groups_step, groups=config.diverse_beam_groups, strength=config.diverse_beam_strength)
    if config.diversity_rate > -1:
        return partial(beam_step, sibling_rate=config.diversity_rate)
    return beam_step


def beam_step(log_probs: Tensor, scores: Tensor, beam: int, sibling_rate: float = 0.0) -> Candidates:
    """The best 2K continuations: enough that K of them are left if every beam ends.

    Args:
        log_probs: (B, n, U). scores: (B, n). beam: K.
        sibling_rate: penalty per rank among the continuations of one beam (Li et al. 2016, arXiv:1611.08562), as soon
            as there are several beams.
    """
    B, n, U = log_probs.shape
    width = min(2 * beam, U)
    best, tokens = log_probs.topk(width)
    totals = best + scores.unsqueeze(-1)  # (B, n, width)
    totals = totals.nan_to_num(-math.inf, math.inf, -math.inf)  # NaN would win; a row that holds it has no way on
    if sibling_rate and n > 1:
        totals = totals - sibling_rate * torch.arange(1, width + 1, device=totals.device)
    top, index = totals.flatten(1).topk(min(2 * beam, n * width))
    return Candidates(top, tokens.flatten(1).gather(1, index), index // width)


def diverse_groups_step(log_probs: Tensor, scores: Tensor, beam: int, groups: int, strength: float) -> Candidates:
    """Diverse beam search: groups choose in turn, each avoiding what earlier groups chose at this step.

    The penalty is strength times the number of earlier candidates with the same token (Hamming diversity, Vijayakumar
    et al. 2016, arXiv:1610.02424). Beam i belongs to group i mod groups, and so are the candidates ordered.
    """
    B, n, U = log_probs.shape
    counts = log_probs.new_zeros(B, U)
    proposals = []
    for group in range(groups):
        own = slice(group, None, groups) if n > 1 else slice(None)
        part = log_probs[:, own] - strength * counts.unsqueeze(1) if group else log_probs[:, own]
        proposal = beam_step(part, scores[:, own], beam // groups)
        counts.scatter_add_(1, proposal.tokens, (proposal.scores > -math.inf).to(counts))
        if n > 1:
            proposal.beams = proposal.beams * groups + group
        proposals.append(proposal)
    return Candidates(
        torch.stack([p.scores for p in proposals], dim=2).flatten(1),
        torch.stack([p.tokens for p in proposals], dim=2).flatten(1),
        torch.stack([p.beams for p in proposals], dim=2).flatten(1),
    )


def sampling_step(
    log_probs: Tensor,
    scores: Tensor,
    beam: int,
    top_k: int,
    top_p: float,
    generators: Sequence[torch.Generator] | None = None,
) -> Candidates:
    """K draws for each sample: all from its only beam at the first step, later one from each beam.

    Top-p, when positive, wins over top-k: the smallest set of most likely tokens whose probabilities reach p
    (Holtzman et al. 2019, arXiv:1904.09751). A token scores its log-probability before truncation.

    Args:
        log_probs: (B, n, U). scores: (B, n). beam: K.
        generators: B sources of the draws, one for each sample; None = PyTorch's own for all.
    """
    B, n, U = log_probs.shape
    kept, order = log_probs, None
    if top_p > 0:
        kept, order = log_probs.sort(descending=True)
        before = F.pad(kept.exp().cumsum(-1)[..., :-1], (1, 0))  # probability of all more likely tokens
        kept = kept.masked_fill(before >= top_p, -math.inf)
    elif top_k > 0:
        kept, order = log_probs.topk(min(top_k, U))
    weights = kept.softmax(-1).nan_to_num(1.0)  # a dead beam draws anything, its score stays -inf
    sources: Sequence[torch.Generator | None] = generators or [None]
    parts = weights.flatten(0, 1).split(B * n // len(sources))  # rows of one source
    draws = torch.cat(
        [
            part.multinomial(beam // n, replacement=True, generator=generator)
            for part, generator in zip(parts, sources, strict=True)
        ]
    ).view(B, beam)
    beams = torch.arange(n, device=draws.device).repeat_interleave(beam // n).expand(B, -1)
    flat = beams * kept.size(2) + draws
    tokens = draws if order is None else order.flatten(1).gather(1, flat)
    totals = kept.flatten(1).gather(1, flat) + scores.gather(1, beams)
    return Candidates(totals.nan_to_num(-math.inf, math.inf, -math.inf), tokens, beams)


def survivors(candidates: Candidates, ended: Tensor, beam: int) -> Candidates:
    """The first K candidates that have not ended (B, K).

    Where fewer are left, others fill the slots with a score of -inf: dead beams.

    Args:
        ended: (B, N), True where the candidate's last token is end of sentence. beam: K.
    """
    missing = max(0, beam - ended.size(1))
    order = ended.to(torch.uint8).sort(dim=1, stable=True).indices[:, :beam]
    scores = candidates.scores.masked_fill(ended, -math.inf).gather(1, order)
    chosen = Candidates(scores, candidates.tokens.gather(1, order), candidates.beams.gather(1, order))
    if missing:
        chosen.scores = F.pad(chosen.scores, (0, missing), value=-math.inf)
        chosen.tokens, chosen.beams = F.pad(chosen.tokens, (0, missing)), F.pad(chosen.beams, (0, missing))
    return chosen
