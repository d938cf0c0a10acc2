"""int8 weights: how they are rounded, where, on which devices, and what they refuse."""

import copy

import pytest
import torch
from torch import nn

from models.generation import CandidateTrie, GenerationConfig, generate, rank_candidates
from models.ofa import OFA, OFAConfig, int8
from models.ofa.inference import prepare_for_inference
from models.ofa.int8 import Int8Linear
from models.weights import save_model
from tests.pretended_gpu import pretended_gpu, to_gpu
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
INTEGERS = [True, False] if int8.has_integer_product() else [False]


@pytest.fixture(params=INTEGERS, ids=lambda on: "integer product" if on else "multiplied out")
def integers(request, monkeypatch) -> bool:
    if not request.param:
        monkeypatch.setattr(int8, "has_integer_product", lambda: False)
    return request.param


def network(**options) -> OFA:
    torch.manual_seed(1)
    return OFA(OFAConfig.from_arch("ofa_demo", vocab_size=200, **options)).eval()


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {"src_tokens": torch.tensor([[0, 9, 5, 2], [0, 7, 2, 1]]), "patch_images": torch.randn(2, 3, 48, 48)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_channel_and_a_row_have_their_own_scale(integers, dtype):
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    linear.weight.mul_(torch.logspace(-4, 2, 48)[:, None])  # a scale for all would round most channels to 0
    x = (torch.randn(5, 64) * torch.logspace(-4, 4, 5)[:, None]).to(dtype)
    exact, sizes = x.float() @ linear.weight.T, x.float().norm(dim=1)[:, None] * linear.weight.norm(dim=1)
    linear.bias.zero_()
    found = Int8Linear(linear.to(dtype))(x)
    assert found.dtype == dtype and found.shape == (5, 48)
    assert ((found - exact).abs() < 0.01 * sizes).all()


@torch.no_grad()
def test_shapes_zeros_and_biases(integers):
    linear = nn.Linear(8, 4)
    linear.weight[1] = 0
    layer = Int8Linear(linear)
    assert layer(torch.zeros(2, 3, 8)).equal(linear.bias.expand(2, 3, 4))
    assert layer(torch.randn(2, 3, 8))[..., 1].equal(linear.bias[1].expand(2, 3))
    assert layer(torch.randn(0, 8)).shape == (0, 4)
    assert Int8Linear(nn.Linear(8, 4, bias=False))(torch.zeros(1, 8)).equal(torch.zeros(1, 4))


@torch.no_grad()
def test_layers_are_quantized_and_nothing_else(integers):
    model = prepare_for_inference(network(), int8=True)
    names = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    expected = {name for name, module in network().named_modules() if type(module) is nn.Linear and ".layers." in name}
    assert names == expected and len(names) > 30
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_outputs_stay_close(integers):
    exact = network().encode(**inputs()).out
    found = prepare_for_inference(network(), int8=True).encode(**inputs()).out
    assert 0 < (found - exact).norm() < 0.03 * exact.norm()


@torch.no_grad()
def test_search_and_ranking(integers):
    plain, model = network(), prepare_for_inference(network(), int8=True)
    config = GenerationConfig(beam=3, max_len_b=6, min_len=6)
    ours, theirs = generate(model, inputs(), config), generate(plain, inputs(), config)
    assert all(len(row[0].tokens) == 7 for row in ours)
    assert [row[0].score for row in ours] == pytest.approx([row[0].score for row in theirs], abs=0.1)
    trie = CandidateTrie([[i, j] for i in range(10, 20) for j in range(30, 33)])
    scores = [rank_candidates(m, m.encode(**inputs()), trie, top_k=None).scores for m in (model, plain)]
    torch.testing.assert_close(scores[0], scores[1], atol=0.2, rtol=0)
    torch.testing.assert_close(scores[0].exp().sum(1), torch.ones(2))


@torch.no_grad()
def test_copies_casts_and_moves(integers):
    model = prepare_for_inference(network(), int8=True)
    before = model.encode(**inputs()).out
    assert copy.deepcopy(model).encode(**inputs()).out.equal(before)
    half = copy.deepcopy(model).bfloat16()
    images = inputs() | {"patch_images": inputs()["patch_images"].bfloat16()}
    found = half.encode(**images).out
    assert found.dtype == torch.bfloat16 and (found - before).norm() < 0.05 * before.norm()
    assert all(module.scale.dtype == torch.float32 for module in half.modules() if isinstance(module, Int8Linear))


@torch.no_grad()
def test_on_a_gpu_answers_are_close(monkeypatch):
    exact = network().encode(**inputs()).out
    monkeypatch.setattr(int8, "has_integer_product", lambda: False)
    model = prepare_for_inference(network(), int8=True).bfloat16()
    with pretended_gpu():
        moved = {name: value.to("cuda") for name, value in inputs().items()}
        found = to_gpu(model).encode(moved["src_tokens"], moved["patch_images"].bfloat16()).out.cpu().float()
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_refusals(integers, tmp_path):
    model = prepare_for_inference(network(), int8=True)
    state = network().state_dict()
    for call, reason in (
        (model.state_dict, "with int8 weights cannot be saved: save the one that load_model returns"),
        (lambda: save_model(model, tmp_path / "model.pt"), "with int8 weights cannot be saved"),
        (model.encoder.embed_images.state_dict, "with int8 weights cannot be saved"),
        (model.train, "neither be trained"),
        (lambda: model.load_state_dict(state), "nor take other weights"),
    ):
        with pytest.raises(UserError, match=reason):
            call()
    assert not any(module.training for module in model.modules()) and not list(tmp_path.iterdir())
