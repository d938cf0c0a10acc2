"""Compiled layers: one graph per kind, whatever depth, rates, batch and lengths are; numbers equal those of plain ones.

The backend "eager" runs the traced graphs themselves; "aot_eager" traces the backward pass too.
"""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.fx.experimental._config
from torch import Tensor
from torch._dynamo.utils import counters

from models.ofa import OFA, OFAConfig
from models.ofa.compiling import compile_layers
from models.ofa.drop_path import DropPath

DEPTH = 9  # more than PyTorch's limit of recompilations


@pytest.fixture(scope="module", autouse=True)
def own_compiler_state() -> Iterator[None]:
    torch._dynamo.reset()
    compiler, shapes = torch._dynamo.config, torch.fx.experimental._config
    with (
        compiler.patch(specialize_float=False, recompile_limit=8),  # type: ignore[attr-defined]
        shapes.patch(use_duck_shape=True),  # type: ignore[attr-defined]
    ):
        yield
    torch._dynamo.reset()


def make_model(depth: int = DEPTH, **options: Any) -> OFA:
    rates = dict(encoder_drop_path_rate=0.3, decoder_drop_path_rate=0.3, dropout=0.1)
    layers = dict(encoder_layers=depth, decoder_layers=depth)
    torch.manual_seed(0)
    return OFA(OFAConfig.from_arch("ofa_demo", vocab_size=60, **{**rates, **layers, **options})).train()


def batch(rows: int, source: int, target: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return {
        "src_tokens": torch.randint(4, 60, (rows, source), generator=generator),
        "prev_output_tokens": torch.randint(4, 60, (rows, target), generator=generator),
        "patch_images": torch.randn(rows, 3, 32, 48, generator=generator),
    }


def update(model: OFA, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Logits and gradients, with the same draws each time."""
    model.zero_grad()
    torch.manual_seed(5)
    logits = model(**inputs)
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("recompute", [False, True])
def test_one_graph_for_all_layers_of_a_kind(recompute: bool) -> None:
    plain = make_model(checkpoint_activations=recompute)
    compiled = copy.deepcopy(plain)
    assert compile_layers(compiled, "eager")
    assert compiled.encoder.layers[1].drop_path.drop_prob == 0.3 / 8  # type: ignore[union-attr]
    counters.clear()
    sizes = [(2, 5, 4), (3, 6, 7), (4, 9, 5), (6, 4, 4)]
    for rows, source, target in sizes[:2] if recompute else sizes:
        inputs = batch(rows, source, target)
        torch.testing.assert_close(update(compiled, inputs), update(plain, inputs))
    # Recomputed layers run the graphs that the first model's have made.
    assert counters["stats"]["unique_graphs"] == (0 if recompute else 2) and not counters["graph_break"]
    assert list(compiled.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(compiled.state_dict())


def test_backward_graph_of_recomputed_layers() -> None:
    plain = make_model(2, checkpoint_activations=True)
    compiled = copy.deepcopy(plain)
    assert compile_layers(compiled, "aot_eager")
    counters.clear()
    results = []
    for model in (compiled, plain):
        torch.manual_seed(3)
        inputs = batch(2, 5, 4)
        model.encoder(inputs["src_tokens"], inputs["patch_images"]).out.square().mean().backward()
        results.append([p.grad for p in model.encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(*results)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@torch.inference_mode()
def test_steps_of_generation_are_three_graphs() -> None:
    """The first position, further ones, and several rows of each sample; other sizes add none."""
    plain = make_model(3).eval()
    compiled = copy.deepcopy(plain)
    assert compile_layers(compiled, "eager")
    counters.clear()
    for rows, source, beams, capacity in [(2, 5, 3, 12), (3, 7, 2, 20)]:
        inputs, found = batch(rows, source, 6), []
        for model in (compiled, plain):
            enc = model.encode(inputs["src_tokens"], inputs["patch_images"])
            state = model.start(enc, 1, capacity)
            steps = [model.step(tokens, state) for tokens in inputs["prev_output_tokens"][:, :3].split(1, 1)]
            state.reorder(torch.arange(rows).repeat_interleave(beams))
            again = inputs["prev_output_tokens"][:, 3:].repeat_interleave(beams, 0)
            found.append(steps + [model.step(tokens, state) for tokens in again.split(1, 1)])
        torch.testing.assert_close(*found)
    assert counters["stats"]["unique_graphs"] == 4 and not counters["graph_break"]  # and the encoder's


def test_copies_are_plain_and_draw_the_same() -> None:
    compiled = make_model(2)
    assert compile_layers(compiled, "eager")
    copied = copy.deepcopy(compiled)
    assert copied.encoder.layers[0]._compiled_call_impl is None  # type: ignore[union-attr]
    path = copied.encoder.layers[1].drop_path  # type: ignore[union-attr]
    branch, drawn = torch.ones(50, 3, 2), []
    for module in (path, DropPath(0.3)):
        torch.manual_seed(1)
        drawn += [module(branch), module(branch)]  # type: ignore[operator]
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])


def test_what_cannot_compile_stays_plain_with_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("No C++ compiler found.\nA second line.")

    model = make_model(1)
    with caplog.at_level(logging.WARNING):
        assert not compile_layers(model, broken)
    (record,) = [r for r in caplog.records if r.name == "models.ofa.compiling"]
    assert "No C++ compiler found" in record.getMessage() and "second" not in record.getMessage()
    assert model.encoder.layers[0]._compiled_call_impl is None  # type: ignore[union-attr]
    assert all(path.keep is None for path in model.modules() if isinstance(path, DropPath))
    model(**batch(2, 5, 4))
