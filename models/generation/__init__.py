"""Decoding: searches, sampling, and what may be generated."""

from models.generation.candidates import CandidateTrie
from models.generation.config import GenerationConfig
from models.generation.ranking import Ranking, rank_candidates
from models.generation.search import Hypothesis, generate, require_hypotheses

__all__ = [
    "CandidateTrie",
    "GenerationConfig",
    "Hypothesis",
    "Ranking",
    "generate",
    "rank_candidates",
    "require_hypotheses",
]
