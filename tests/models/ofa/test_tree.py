"""TreeState against full forward passes of every path from the root."""

import pytest
import torch
from torch import Tensor

from models.ofa import OFA, OFAConfig
from models.ofa.tree import TreeState

# Parent of each node (-1: the prompt) and its depth: two trees of three levels.
PARENTS = [-1, 0, 1, 1, 0, -1, 5, 6]
DEPTHS = [1, 2, 3, 3, 2, 1, 2, 3]
SOURCES = torch.tensor([[0, 8, 9, 10, 2], [0, 11, 2, 1, 1], [0, 12, 13, 2, 1]])


def paths() -> list[list[int]]:
    """Nodes on the way to each node, itself included."""
    found: list[list[int]] = []
    for node, parent in enumerate(PARENTS):
        found.append([*(found[parent] if parent >= 0 else []), node])
    return found


@pytest.fixture(scope="module", params=["released", "entangled"])
def model(request) -> OFA:
    torch.manual_seed(0)
    model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=50, disable_entangle=request.param == "released")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def visibility(order: list[int]) -> Tensor:
    """(1, m, m): which nodes of an order each one sees."""
    return torch.tensor([[[slot in paths()[node] for slot in order] for node in order]])


def expected(model: OFA, enc, prompts: list[list[int]], tokens: Tensor) -> Tensor:
    """Features (B, nodes, C), each from a forward of its own; tokens (B, nodes)."""
    rows = []
    for b, prompt in enumerate(prompts):
        one = enc.select(torch.tensor([b]))
        sequences = [[*prompt, *tokens[b, path].tolist()] for path in paths()]
        rows.append(torch.cat([model.decoder(torch.tensor([s]), one)[:, -1] for s in sequences]))
    return torch.stack(rows)


def start(model: OFA, enc, prompts: list[list[int]], depth: int = 3) -> TreeState:
    lengths = torch.tensor([len(p) for p in prompts])
    padded = torch.tensor([[*p, *[1] * (int(lengths.max()) - len(p))] for p in prompts])
    return TreeState(model.decoder, enc, padded, lengths, depth)


PROMPTS = {"bos": [[0]] * 3, "same length": [[0, 5], [0, 6], [0, 7]], "ragged": [[0], [0, 5, 6, 7], [0, 8]]}


@torch.no_grad()
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("same_tokens", [True, False])
def test_nodes_equal_full_forwards_at_once_and_in_parts(model, prompts, same_tokens):
    enc = model.encode(SOURCES)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(4, 50, (1 if same_tokens else 3, len(PARENTS)), generator=generator)
    depths = torch.tensor([DEPTHS]).expand_as(tokens)
    order = list(range(len(PARENTS)))
    seen = visibility(order)
    wanted = expected(model, enc, prompts, tokens.expand(3, -1))

    state = start(model, enc, prompts)
    lasts = [model.decoder(torch.tensor([p]), enc.select(torch.tensor([b])))[0, -1] for b, p in enumerate(prompts)]
    torch.testing.assert_close(state.root, torch.stack(lasts), atol=1e-5, rtol=0)
    torch.testing.assert_close(state.extend(tokens, depths, seen), wanted, atol=1e-4, rtol=0)
    state.rewind()
    parts = [
        state.extend(tokens[:, a:b], depths[:, a:b], seen[:, a:b, :b]) for a, b in ((0, 2), (2, 3), (3, 7), (7, 8))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), wanted, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_samples_leave_and_move(model, prompts):
    enc = model.encode(SOURCES)
    tokens = torch.randint(4, 50, (3, len(PARENTS)), generator=torch.Generator().manual_seed(4))
    depths, seen = torch.tensor([DEPTHS]).expand(3, -1), visibility(list(range(len(PARENTS))))
    wanted = expected(model, enc, prompts, tokens)
    state = start(model, enc, prompts)
    first = state.extend(tokens[:, :3], depths[:, :3], seen[:, :3, :3])
    samples = torch.tensor([2, 0])
    state.keep_samples(samples)
    rest = state.extend(tokens[samples, 3:], depths[:2, 3:], seen[:, 3:])
    torch.testing.assert_close(first, wanted[:, :3], atol=1e-4, rtol=0)
    torch.testing.assert_close(rest, wanted[samples, 3:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_image_positions_may_differ_between_samples(model):
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(3, 3, 64, 64, generator=generator)
    enc = model.encode(SOURCES, images, sample_patch_num=2)
    assert enc.positions.size(0) == 3
    tokens, depths = torch.tensor([[7, 8]]), torch.tensor([[1, 2]])
    for prompts in PROMPTS.values():
        features = start(model, enc, prompts).extend(tokens, depths, torch.ones(1, 2, 2).tril().bool())
        for b, prompt in enumerate(prompts):
            full = model.decoder(torch.tensor([[*prompt, 7, 8]]), enc.select(torch.tensor([b])))
            torch.testing.assert_close(features[b], full[0, -2:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_longer_than_the_positions(model):
    with pytest.raises(ValueError, match="1025 text tokens"):
        start(model, model.encode(SOURCES), [[0] * 1000] * 3, depth=25)
