"""Models that decode together: one step gives the log-probability of their mean."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.generation.constraints import TokenRules
from models.ofa import OFA
from models.ofa.beams import BeamState

# Rows of the token table multiplied at once on the CPU.
BLOCK = 512


class Ensemble:
    """Models and their decoding states, stepped in parallel; usually just one.

    Args:
        models: those of an ensemble, over one vocabulary. inputs: arguments of `OFA.encode`.
        prompt: (B, P) tokens to begin with. beams: K. capacity: decoder positions needed.
        code: whether image codes are generated. temperature: logits are divided by it.

    Attributes:
        prompt_features: for each model, features (B, P, C) of the prompt.
        graphs: whether steps may be replayed as CUDA graphs.
    """

    def __init__(
        self,
        models: Sequence[OFA],
        inputs: Mapping[str, Any],
        prompt: Tensor,
        beams: int,
        capacity: int,
        code: bool,
        temperature: float,
    ) -> None:
        self.models, self.beams, self.temperature = models, beams, temperature
        self.graphs = all(model.cuda_graphs for model in models)
        self.states = [
            BeamState(model.decoder, model.encode(**inputs), prompt, beams, capacity, code) for model in models
        ]
        self.prompt_features = [state.features for state in self.states]
        self._ids: Tensor | None = None  # what self._tables are for
        self._tables: list[Tensor] = []

    def prepare(self, position: int) -> None:
        """Makes ready what the step at a position needs, outside whatever is replayed."""
        for state in self.states:
            state.prepare(position)

    def step(self, tokens: Tensor, past: Tensor, length: int) -> list[Tensor]:
        """Next tokens (B, K) -> for each model, features (B, K, C); `past`, `length`: see `BeamState.step`."""
        return [state.step(tokens, past, length) for state in self.states]

    def log_probs(self, features: list[Tensor], rules: TokenRules, position: Tensor) -> Tensor:
        """Features (rows, C) of each model -> float32 log-probabilities (rows, U) of the ids the rules need."""
        parts = []
        for index, x in enumerate(features):
            logits = self._logits(index, x, rules.ids)
            if self.temperature != 1.0:
                logits = logits.float()
                logits /= self.temperature  # beyond float16's range, and twice rounded in bfloat16
            rules.before_softmax(logits, position)
            parts.append(logits.log_softmax(-1, dtype=torch.float32))
        return parts[0] if len(parts) == 1 else torch.stack(parts).logsumexp(0) - math.log(len(parts))

    def _logits(self, index: int, features: Tensor, ids: Tensor | None) -> Tensor:
        if ids is not self._ids:  # picking rows of the token table costs as much as a step: once a search
            self._ids = ids
            self._tables = [model.decoder.output_projection.weight[ids] for model in self.models]
        table = self.models[index].decoder.output_projection.weight if ids is None else self._tables[index]
        return features @ table.t() if features.is_cuda else project_in_blocks(features, table)

    def keep_samples(self, samples: Tensor) -> None:
        """Goes on with some samples only (1-D indices)."""
        for state in self.states:
            state.keep_samples(samples)


def project_in_blocks(features: Tensor, table: Tensor) -> Tensor:
    """Features (rows, C) @ transposed table (U, C) -> (rows, U), in two thirds of the time of one product.

    For few rows CPU libraries spend much of it rearranging the whole table; blocks of it fit the cache.
    """
    U = table.size(0)
    whole = U - U % BLOCK
    out = features.new_empty(features.size(0), U)
    blocks = table[:whole].unflatten(0, (-1, BLOCK))  # (n, BLOCK, C)
    out_blocks = out[:, :whole].unflatten(1, (-1, BLOCK)).transpose(0, 1)  # (n, rows, BLOCK)
    torch.bmm(features.expand(blocks.size(0), -1, -1), blocks.transpose(1, 2), out=out_blocks)
    torch.mm(features, table[whole:].t(), out=out[:, whole:])
    return out


@contextmanager
def retained_dropout(models: Sequence[OFA], active: bool) -> Iterator[None]:
    """Keeps dropout on inside the block, in models that are in eval mode; norms and drop path stay as they are."""
    modules = [module for model in models for module in model.modules() if hasattr(module, "dropout")]
    switched = [module for module in modules if active and not module.training]
    for module in switched:
        module.training = True  # not train(), which would switch the modules inside as well
    try:
        yield
    finally:
        for module in switched:
            module.training = False
