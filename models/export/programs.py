"""The three modules as `torch.export` programs, and how far programs of either kind are from the model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from models.export.modules import ExportedEncoder, FirstStep, NextStep
from models.ofa import OFA
from models.ofa.encoder import Encoder
from models.ofa.folding import FoldedConv2d, FoldedNorm
from utils.constants import BOS, EOS, NUM_SPECIAL, PAD
from utils.errors import UserError

ENCODER, FIRST, NEXT = "encoder", "decoder_first", "decoder_next"
ENCODER_NAMES = ("src_tokens", "patch_images", "patch_masks")
# Largest difference from the model: of the encoder's output and of logits, each relative to its largest value above 1.
TOLERANCE = 1e-3
FOLDED = (FoldedConv2d, FoldedNorm)  # modules of a model prepared for inference that have a plain form
# A program with its tensors in order, lists of tensors flattened -> all that it returns, flattened too.
Call = Callable[[str, Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Traced:
    """A module as a program.

    Attributes:
        inputs, outputs: names of tensors in order; sizes: names of the sizes that may change, by input and dimension.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: dict[str, dict[int, str]]


def cache_names(kind: str, layers: int) -> tuple[str, ...]:
    """Names of keys and values of all layers; kind: past, present or memory."""
    return tuple(f"{kind}.{layer}.{part}" for layer in range(layers) for part in ("key", "value"))


def trace(model: OFA, side: int, code: bool = False) -> dict[str, Traced]:
    """The programs by name.

    Args:
        model: in eval mode, float32. side: of the images, in pixels. code: the decoder writes image codes, not text.
    """
    layers, ids = model.config.decoder_layers, partial(torch.randint, NUM_SPECIAL, model.config.vocab_size)
    batch, positions = Dim("batch"), Dim("positions")
    rows, limit = {0: batch}, model.decoder.max_length(code)
    length = Dim("length", max=model.encoder.max_positions)
    # The sizes here are unlike each other, so that no two are taken for the same.
    tokens, images, masks = ids((2, 7)), torch.rand(2, 3, side, side), torch.tensor([True, False])
    encoder = ExportedEncoder(model)
    first, next_step = FirstStep(model, code), NextStep(model, code)
    with torch.no_grad():
        encoded = encoder(tokens, images, masks)
        prompt = ids((2, 3))
        _, past, memory, memory_positions = first(prompt, *encoded)
    of_encoder = ("encoded", "padding_mask", "positions")
    of_memory = (*cache_names("memory", layers), "memory.positions")
    sizes: list[Any] = [{0: batch, 1: length}, rows, rows]
    with _plain_trunk(model), _wider_table(model.encoder):
        traced = {ENCODER: _trace(encoder, (tokens, images, masks), sizes, ENCODER_NAMES, of_encoder)}
    sizes = [{0: batch, 1: Dim("prompt", max=limit - 1)}, *2 * [{0: batch, 1: positions}], {1: positions}]
    outputs = ("logits", *cache_names("present", layers), *of_memory)
    traced[FIRST] = _trace(first, (prompt, *encoded), sizes, ("tokens", *of_encoder), outputs)
    of_past, of_keys = {0: batch, 2: Dim("past", max=limit - 1)}, {0: batch, 2: positions}
    sizes = [rows, [of_past] * len(past), [of_keys] * len(memory), {2: positions}]
    inputs, outputs = ("tokens", *cache_names("past", layers), *of_memory), ("logits", *cache_names("present", layers))
    traced[NEXT] = _trace(next_step, (prompt[:, :1], past, memory, memory_positions), sizes, inputs, outputs)
    return traced


@contextmanager
def _plain_trunk(model: OFA) -> Iterator[None]:
    """Inside, folded convolutions are ordinary ones: a program takes weights by their names in the state dict."""
    folded = [
        (parent, name, child)
        for parent in model.encoder.embed_images.modules()
        for name, child in parent.named_children()
        if isinstance(child, FOLDED)
    ]
    try:
        for parent, name, child in folded:
            setattr(parent, name, child.plain())
        yield
    finally:
        for parent, name, child in folded:
            setattr(parent, name, child)


@contextmanager
def _wider_table(encoder: Encoder) -> Iterator[None]:
    """Inside, the longest text takes a part of the buckets as all others do: a whole table is another case to trace."""
    table = encoder.token_rp_bucket
    encoder.token_rp_bucket = F.pad(table, (0, 1, 0, 1))
    try:
        yield
    finally:
        encoder.token_rp_bucket = table


def _trace(
    module: nn.Module, inputs: tuple[Any, ...], sizes: list[Any], names: tuple[str, ...], outputs: tuple[str, ...]
) -> Traced:
    program = torch.export.export(
        module, inputs, dynamic_shapes=sizes, strict=False, prefer_deferred_runtime_asserts_over_guards=True
    )
    flat = [entry for part in sizes for entry in (part if isinstance(part, list) else [part])]
    named = [{dim: size.__name__ for dim, size in entry.items()} for entry in flat]
    return Traced(program, names, outputs, dict(zip(names, named, strict=True)))


def caller(programs: dict[str, ExportedProgram], layers: int) -> Call:
    """How `difference` calls `torch.export` programs."""
    modules = {name: program.module() for name, program in programs.items()}

    def call(name: str, inputs: Sequence[Tensor]) -> list[Tensor]:
        if name == NEXT:
            tokens, *rest, memory_positions = inputs
            given: tuple[Any, ...] = (tokens, rest[: 2 * layers], rest[2 * layers :], memory_positions)
        else:
            given = tuple(inputs)
        return torch.utils._pytree.tree_leaves(modules[name](*given))

    return call


@torch.no_grad()
def difference(
    model: OFA,
    call: Call,
    side: int,
    code: bool = False,
    batch: int = 3,
    length: int = 11,
    prompt: int = 2,
    steps: int = 3,
) -> float:
    """Largest relative difference of programs from the model: of the encoder's output, and of logits.

    The usual sizes are not those that programs were traced with. The last sample has no image, one in the middle is
    padded.

    Args:
        side, code: as in `trace`. batch, length: of the texts (B, L). prompt: tokens of the first step.
        steps: how many more tokens follow, one by one.

    Raises UserError where the difference is above `TOLERANCE`, or no number.
    """
    generator = torch.Generator().manual_seed(1)
    ids = partial(torch.randint, NUM_SPECIAL, model.config.vocab_size, generator=generator)
    src_tokens, tokens = ids((batch, length)), ids((batch, prompt + steps))
    src_tokens[:, 0], src_tokens[:, -1], tokens[:, 0] = BOS, EOS, BOS
    src_tokens[batch // 2, length // 2 :] = PAD
    images = torch.rand(batch, 3, side, side, generator=generator) * 2 - 1
    masks = torch.arange(batch) < batch - 1
    enc = model.encode(src_tokens, images, masks)
    encoded = call(ENCODER, (src_tokens, images, masks))
    logits = model.decode(tokens, enc, torch.full((batch,), code))
    found, *rest = call(FIRST, (tokens[:, :prompt], *encoded))
    caches = 2 * model.config.decoder_layers
    past, memory, parts = rest[:caches], rest[caches:], [found]
    for step in range(prompt, prompt + steps):
        found, *past = call(NEXT, (tokens[:, step : step + 1], *past, *memory))
        parts.append(found)
    differences = [_relative(encoded[0], enc.out), _relative(torch.cat(parts, dim=1), logits)]
    if not max(differences) <= TOLERANCE:
        raise UserError(
            f"The exported programs differ from the model by {max(differences):.1e}, more than {TOLERANCE:g}: "
            "check that the weights are numbers, and report it with the versions of torch and onnxruntime."
        )
    return max(differences)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
