"""bfloat16 and float16 models: norms, softmax and log-probabilities are computed in float32."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.generation import CandidateTrie, GenerationConfig, generate, rank_candidates
from models.ofa import OFA, OFAConfig
from models.ofa.attention import attend, fold_padding
from models.ofa.inference import prepare_for_inference

pytestmark = pytest.mark.usefixtures("one_thread")
HALVES = [torch.bfloat16, torch.float16]
V = 400


def model(dtype: torch.dtype) -> OFA:
    torch.manual_seed(0)
    network = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=V)).eval()
    torch.nn.init.normal_(network.encoder.embed_tokens.weight, std=0.5)
    return prepare_for_inference(network, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_norms_are_computed_in_float32(dtype):
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(768)
    torch.nn.init.normal_(norm.weight, 1.0)
    norm.to(dtype)
    x = (100 + torch.randn(64, 768)).to(dtype)  # variance is lost where sums are rounded to `dtype`
    exact = F.layer_norm(x.float(), (768,), norm.weight.float(), norm.bias.float(), norm.eps)
    assert (norm(x).float() - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_softmax_of_attention_is_computed_in_float32(dtype, padded):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 900, 64).to(dtype) for _ in range(3))
    v = v.abs()  # weights of many small keys add up
    bias = torch.randn(1, 4, 900, 900).to(dtype)
    padding = torch.arange(900).expand(2, -1) >= (700 if padded else 900)
    exact = (q.float() @ k.float().mT * 0.1 + bias.float()).masked_fill(padding[:, None, None], -math.inf)
    exact = exact.softmax(-1) @ v.float()
    keys, values = fold_padding(k, v, padding) if padded else (k, v)
    assert (attend(q, keys, values, bias, scale=0.1) - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.max()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@torch.no_grad()
def test_probabilities_of_candidates_are_exact_for_the_features(dtype):
    network = model(dtype)
    enc = network.encode(torch.tensor([[0, 9, 5, 2], [0, 7, 8, 2]]))
    answers = [[token] for token in range(10, 300)]
    found = rank_candidates(network, enc, CandidateTrie(answers), top_k=None)
    features = network.decoder(torch.tensor([[0], [0]]), enc)[:, 0].float()
    logits = features @ network.decoder.output_projection.weight[10:300].float().T
    torch.testing.assert_close(found.scores, logits.log_softmax(-1), atol=2e-5, rtol=0)


def test_temperature_divides_in_float32():
    network = model(torch.float16)
    inputs = {"src_tokens": torch.tensor([[0, 9, 5, 2]] * 4)}
    # float16 ends at 65,504, and these logits go beyond it.
    config = GenerationConfig(sampling=True, beam=2, max_len_b=4, min_len=4, temperature=1e-5)
    with torch.no_grad():
        drawn = generate(network, inputs, config)
    assert all(math.isfinite(h.score) and len(h.tokens) == 5 for row in drawn for h in row)
