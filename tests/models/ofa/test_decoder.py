"""Several sequences of one encoded sample give what a repeated encoder output gives, gradients too."""

import pytest
import torch

from models.ofa import OFA, OFAConfig
from models.ofa.encoder import EncoderOutput

B, G = 2, 3
SOURCES = torch.tensor([[0, 9, 8, 7, 2], [0, 5, 2, 1, 1]])  # the second one is padded
PREVIOUS = torch.tensor([[0, 4, 5, 6], [0, 7, 1, 1], [0, 9, 9, 1], [0, 6, 1, 1], [0, 8, 4, 1], [0, 5, 5, 5]])
REAL = PREVIOUS.ne(1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    overrides = dict(encoder_layers=2, decoder_layers=2, resnet_type="resnet10", vocab_size=60)
    return OFA(OFAConfig.from_arch("ofa_demo", **overrides)).double().eval()


def repeated(enc):
    """Every sample of an encoder output G times."""
    positions = enc.positions if enc.positions.size(0) == 1 else enc.positions.repeat_interleave(G, 0)
    return EncoderOutput(enc.out.repeat_interleave(G, 0), enc.padding_mask.repeat_interleave(G, 0), positions)


@pytest.mark.parametrize(
    ("options", "codes"),
    [({}, None), ({"sample_patch_num": 3}, None), ({}, True), ({}, "mixed")],
    ids=["text", "sampled patches", "codes", "text and codes"],
)
def test_groups_equal_a_repeated_encoder_output(model, options, codes):
    masks = None if codes is None else torch.ones(B * G, dtype=torch.bool)
    if codes == "mixed":
        masks[::2] = False
    torch.manual_seed(1)
    images = torch.randn(B, 3, 48, 48, dtype=torch.double)
    enc = model.encode(SOURCES, images, **options)
    weights = torch.randn(B * G, PREVIOUS.size(1), 60, dtype=torch.double) * REAL.unsqueeze(-1)
    results = []
    for memory in (enc, repeated(enc)):
        model.zero_grad()
        logits = model.decode(PREVIOUS, memory, masks)
        (logits * weights).sum().backward(retain_graph=True)
        results.append((logits[REAL], {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (folded, gradients), (plain, expected) = results
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-12)
    assert gradients.keys() == expected.keys() and "encoder.embed_images.conv1.weight" in gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-11, msg=name)


def test_number_of_sequences_must_divide(model):
    with torch.no_grad(), pytest.raises(ValueError, match="5 sequences for 2 encoded samples"):
        model.decode(PREVIOUS[:5], model.encode(SOURCES))
