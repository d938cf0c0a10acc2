"""Encoder and decoder layers compiled by `torch.compile`: one graph for all layers of a kind, whatever their rates.

Layers are compiled in place, so that names of weights stay, and copies of a compiled model are not compiled.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from models.ofa.drop_path import DropPath, draw_scale
from models.ofa.layers import DecoderLayer, EncoderLayer

# Graphs of one kind of layer: training or not, with or without padding, one row or several, steps of generation.
GRAPHS = 32
logger = logging.getLogger(__name__)


def compile_layers(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> bool:
    """Compiles the layers of a model; they are traced when they are called.

    Batch and lengths are symbols in a graph: 1 and more than 1 are the only sizes that it tells apart.

    Args:
        model: on its device. backend: of `torch.compile`.

    Returns:
        False where nothing can be compiled, e.g. without a C++ compiler: a warning says so and the model stays plain.
    """
    try:
        _try(backend, next(model.parameters()).device)
    except Exception as error:  # of whatever the backend needs: compiler, headers, Triton
        cause = getattr(error, "inner_exception", error)  # what PyTorch wraps in advice to its developers
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        logger.warning("The layers are not compiled, torch.compile does not work here: %s", reason)
        return False
    _configure()
    for kind in (EncoderLayer, DecoderLayer):
        layers = [module for module in model.modules() if isinstance(module, kind)]
        _open_rates(layers)
        for layer in layers:
            layer.compile(backend=backend, dynamic=True)
    return True


def _try(backend: str | Callable[..., Any], device: torch.device) -> None:
    """Compiles a small function, which takes seconds; raises what a layer would raise in the middle of the work."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where there is no CUDA
    torch.compile(lambda x: x.exp() + 1, backend=backend)(torch.zeros(8, device=device))


def _configure() -> None:
    import torch._dynamo  # takes two seconds, and only compiled models need it
    import torch.fx.experimental._config

    # Sizes that are equal by chance in the first batch, such as rows and heads, are different symbols.
    torch.fx.experimental._config.use_duck_shape = False
    # All layers have the same dropout and scale: as symbols, they would have each graph traced twice.
    torch._dynamo.config.specialize_float = True
    name = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(torch._dynamo.config, name, max(GRAPHS, getattr(torch._dynamo.config, name)))


def _open_rates(layers: Sequence[nn.Module]) -> None:
    """Makes the drop path rates of layers tensors (1,): numbers would be constants of a graph, which each layer has."""
    paths = [module for layer in layers for module in layer.modules() if isinstance(module, DropPath)]
    if any(path.drop_prob > 0 for path in paths):
        _define_operator()
        for path in paths:
            path.keep = torch.tensor([1 - path.drop_prob], dtype=torch.float64, device="cpu")


@cache
def _define_operator() -> torch.library.Library:
    """`draw_scale` as an operator that graphs call and do not look into, so that it draws the same numbers there."""
    library = torch.library.Library("ofa", "DEF")
    schema = "draw_scale(Tensor keep, SymInt rows, ScalarType dtype, Device device) -> Tensor"
    library.define(schema, tags=(torch.Tag.nondeterministic_seeded,))

    def draw(keep: Tensor, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return draw_scale(keep.item(), torch.empty(rows, dtype=dtype, device=device))

    def like(keep: Tensor, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(rows, dtype=dtype, device=device)

    library.impl("draw_scale", draw, "CompositeExplicitAutograd")
    torch.library.register_fake("ofa::draw_scale", like, lib=library)
    return library
