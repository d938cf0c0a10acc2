"""Step-by-step decoding equals one full forward, whatever happens to the rows in between."""

import pytest
import torch
from torch import Tensor

from models.ofa import OFA, OFAConfig

GROUPS, LENGTH = 3, 9
# Text of length 6, 4 and 5: the sources are padded.
SOURCES = torch.tensor([[0, 45, 300, 7000, 12, 2], [0, 99, 2, 1, 1, 1], [0, 11, 5, 5, 2, 1]])


@pytest.fixture(scope="module", params=["text", "padded text", "images", "no image in one sample"])
def enc(request, tiny_model):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 64, 96, generator=generator)
    inputs = {
        "text": {"src_tokens": SOURCES[:, :2]},
        "padded text": {"src_tokens": SOURCES},
        "images": {"src_tokens": SOURCES[:, :3], "patch_images": images},
        "no image in one sample": {
            "src_tokens": SOURCES, "patch_images": images, "patch_masks": torch.tensor([True, False, True])
        },
    }[request.param]  # fmt: skip
    with torch.no_grad():
        return tiny_model.encode(**inputs)


def target(code: bool) -> Tensor:
    """(3 * GROUPS, LENGTH) tokens, each row another."""
    generator = torch.Generator().manual_seed(1)
    first, last = (50265, 58457) if code else (4, 50000)
    tokens = torch.randint(first, last, (3 * GROUPS, LENGTH), generator=generator)
    tokens[:, 0] = 0
    return tokens


def full_logits(model: OFA, tokens: Tensor, enc, code: bool) -> Tensor:
    """Logits of one forward in which nothing is shared: one copy of the encoder's output per row."""
    copies = enc.select(torch.arange(enc.out.size(0)).repeat_interleave(tokens.size(0) // enc.out.size(0)))
    return model.decode(tokens, copies, torch.full((tokens.size(0),), code))


@torch.no_grad()
@pytest.mark.parametrize("code", [False, True])
@pytest.mark.parametrize("chunks", [[1] * LENGTH, [4, 1, 3, 1], [LENGTH]])
def test_steps_equal_one_forward(chunks, code, enc, tiny_model):
    tokens = target(code)
    state = tiny_model.start(enc, GROUPS, capacity=LENGTH + 3, code=code)
    logits = torch.cat([tiny_model.project(tiny_model.step(part, state)) for part in tokens.split(chunks, 1)], dim=1)
    assert state.length == LENGTH
    torch.testing.assert_close(logits, full_logits(tiny_model, tokens, enc, code), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("code", [False, True])
def test_steps_after_moving_beams_and_dropping_samples(code, enc, tiny_model):
    tokens = target(code)
    state = tiny_model.start(enc, GROUPS, capacity=LENGTH, code=code)
    tiny_model.step(tokens[:, :3], state)
    rows = torch.tensor([2, 0, 0, 3, 5, 4, 8, 8, 8])  # each sample's rows continue rows of the same sample
    state.reorder(rows)
    tokens = torch.cat([tokens[rows, :3], tokens[:, 3:]], dim=1)
    tiny_model.step(tokens[:, 3:5], state)
    kept = torch.tensor([2, 0])
    state.keep_samples(kept)
    tokens, enc = tokens.unflatten(0, (3, GROUPS))[kept].flatten(0, 1), enc.select(kept)
    logits = tiny_model.project(tiny_model.step(tokens[:, 5:], state))
    torch.testing.assert_close(logits, full_logits(tiny_model, tokens, enc, code)[:, 5:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_one_row_becomes_several(enc, tiny_model):
    """The first step of a search has one row a sample; then each is continued K times."""
    tokens = target(False).unflatten(0, (3, GROUPS))
    tokens[:, :, 1] = tokens[:, :1, 1]
    state = tiny_model.start(enc, 1, capacity=LENGTH)
    tiny_model.step(tokens[:, 0, :2], state)
    state.reorder(torch.arange(3).repeat_interleave(GROUPS))
    tokens = tokens.flatten(0, 1)
    logits = tiny_model.project(tiny_model.step(tokens[:, 2:], state))
    torch.testing.assert_close(logits, full_logits(tiny_model, tokens, enc, False)[:, 2:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_more_positions_than_one_block_of_biases(enc, tiny_model):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(4, 50000, (3, 70), generator=generator)
    state = tiny_model.start(enc, 1, capacity=80)
    features = torch.cat([tiny_model.step(part, state) for part in tokens.split([1, 60, 2, 1, 1, 1, 4], 1)], dim=1)
    expected = tiny_model.decoder(tokens, enc)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_of_some_ids(enc, tiny_model):
    state = tiny_model.start(enc, 1, capacity=1)
    features = tiny_model.step(torch.zeros(3, 1, dtype=torch.long), state)
    ids = torch.tensor([2, 50, 59456])
    torch.testing.assert_close(tiny_model.project(features, ids), tiny_model.project(features)[..., ids])


def test_too_long_is_refused(enc, tiny_model):
    with pytest.raises(ValueError, match="max-len-b"):
        tiny_model.start(enc, 1, capacity=1025)
    with pytest.raises(ValueError, match="code-image-size"):
        tiny_model.start(enc, 1, capacity=1027, code=True)


def test_a_step_compiles_whole_and_once_for_all_lengths():
    model = OFA(OFAConfig.from_arch("ofa_tiny", encoder_layers=1, decoder_layers=1)).eval()
    compiles = []

    def count(graph, example_inputs):
        compiles.append(graph)
        return graph.forward

    step = torch.compile(model.step, backend=count, dynamic=True, fullgraph=True)
    with torch.no_grad():
        enc = model.encode(SOURCES[:, :2])
        state, plain = model.start(enc, 1, 16), model.start(enc, 1, 16)
        for _ in range(6):
            torch.testing.assert_close(step(SOURCES[:, :1], state), model.step(SOURCES[:, :1], plain))
    assert 0 < len(compiles) <= 2  # the first position, all others
