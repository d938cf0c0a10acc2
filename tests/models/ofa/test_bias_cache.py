"""Cached position biases are those of the present weights, whoever changed them, and are reused while nobody does."""

import copy
import pickle

import pytest
import torch
from fairseq.dataclass.configs import EMAConfig

from models.ofa import OFA, OFAConfig
from models.ofa.bias_cache import BiasCache
from ofa_module.engine.optimizers import Average

TEXT = torch.tensor([[0, 9, 8, 2], [0, 7, 2, 1]])
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
NAMES = [
    "pos_q_linear.weight", "pos_q_linear.bias", "pos_k_linear.weight", "pos_k_linear.bias", "pos_ln.weight",
    "image_pos_ln.bias", "embed_positions.weight", "embed_image_positions.weight",
    "token_rel_pos_table_list.0.weight", "image_rel_pos_table_list.1.weight", "image_rp_bucket",
]  # fmt: skip


def network(seed=0):
    torch.manual_seed(seed)
    options = dict(vocab_size=20, encoder_layers=2, decoder_layers=1, image_bucket_size=4, resnet_type="resnet10")
    return OFA(OFAConfig.from_arch("ofa_demo", **options)).eval()


@pytest.fixture
def model():
    """A model with biases in its cache."""
    model = network()
    with torch.no_grad():
        model.encode(TEXT, IMAGES)
    assert len(model.encoder.bias_cache) == 1
    return model


@torch.no_grad()
def assert_fresh(model):
    """The model's output is that of a model without a cache."""
    found = model.encode(TEXT, IMAGES.to(model.encoder.pos_ln.weight.dtype))
    other = copy.deepcopy(model)
    assert len(other.encoder.bias_cache) == 0
    expected = other.encode(TEXT, IMAGES.to(model.encoder.pos_ln.weight.dtype))
    assert torch.equal(found.out, expected.out) and torch.equal(found.positions, expected.positions)
    return found.out


def computed(model, monkeypatch):
    """Counts computations of biases from now on."""
    calls = []
    compute = model.encoder._compute_biases
    monkeypatch.setattr(model.encoder, "_compute_biases", lambda *args: calls.append(args) or compute(*args))
    return calls


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", NAMES)
def test_a_change_in_place_is_noticed(model, name, mode):
    with mode():
        model.encode(TEXT, IMAGES)
        before = model.encode(TEXT, IMAGES).out
        value = model.encoder.state_dict()[name]
        value.copy_(value.roll(1, 0) + (torch.randn(value.shape) if value.is_floating_point() else 0))
        after = model.encode(TEXT, IMAGES).out
    assert not torch.allclose(before, after)
    assert torch.equal(after, assert_fresh(model))


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_noticed(model, assign):
    before = assert_fresh(model)
    model.load_state_dict(network(seed=1).state_dict(), assign=assign)
    assert not torch.allclose(before, assert_fresh(model))


def test_weights_loaded_into_a_part_are_noticed(model):
    before = assert_fresh(model)
    model.encoder.pos_q_linear.load_state_dict(network(seed=1).encoder.pos_q_linear.state_dict())
    assert not torch.equal(before, assert_fresh(model))


@pytest.mark.parametrize("change", [torch.nn.Module.double, torch.nn.Module.bfloat16, lambda m: m.to(torch.float64)])
def test_another_type_is_noticed(model, change):
    change(model)
    assert assert_fresh(model).dtype != torch.float32
    assert_fresh(model.float())


def test_half_and_back_is_noticed(model):
    before = assert_fresh(model)
    assert not torch.equal(before, assert_fresh(model.half().float()))


def test_another_parameter_is_noticed(model):
    model.encoder.pos_ln = torch.nn.LayerNorm(128, bias=False)
    torch.nn.init.normal_(model.encoder.pos_ln.weight)
    assert_fresh(model)
    model.encoder.pos_k_linear.weight = torch.nn.Parameter(torch.randn(128, 128))
    assert_fresh(model)
    model.encoder.pos_k_linear.weight.data = torch.randn(128, 128)
    assert_fresh(model)


@pytest.mark.parametrize("told", [torch.nn.Module.eval, torch.nn.Module.train, "gradients"])
def test_what_an_optimizer_writes_through_data_is_noticed(model, told):
    before = assert_fresh(model)
    if told == "gradients":
        model.encode(TEXT, IMAGES)  # in evaluation mode, as some fine-tune
    for weight in model.parameters():
        weight.data.copy_(torch.randn_like(weight) * 0.1)
    if told != "gradients":
        told(model).eval()
    assert not torch.allclose(before, assert_fresh(model))


@pytest.mark.parametrize("options", [{}, {"ema_fp32": True}, {"ema_start_update": 5}], ids=str)
def test_a_step_of_the_moving_average_is_noticed(model, options):
    average = Average(model, EMAConfig(store_ema=True, ema_decay=0.5, **options))
    averaged = average.get_model().eval()
    before = assert_fresh(averaged)
    other = network(seed=1)
    average.step(other, 1)  # no eval() after it
    middle = assert_fresh(averaged)
    assert not torch.allclose(before, middle)
    average.step(network(seed=2), 9)
    assert not torch.allclose(middle, assert_fresh(averaged))
    average.restore(model.state_dict())
    torch.testing.assert_close(assert_fresh(averaged), before)


def test_weights_without_versions():
    with torch.inference_mode():
        model = network()
        before = model.encode(TEXT, IMAGES).out
        assert torch.equal(model.encode(TEXT, IMAGES).out, before)
        model.encoder.pos_q_linear.weight.mul_(3)
        after = model.encode(TEXT, IMAGES).out
        model.encoder.bias_cache.clear()
        assert torch.equal(after, model.encode(TEXT, IMAGES).out) and not torch.equal(after, before)


@torch.no_grad()
def test_autocast_has_biases_of_its_own(model):
    exact = model.encode(TEXT, IMAGES).positions
    with torch.autocast("cpu", torch.bfloat16):
        model.encode(TEXT, IMAGES)
    assert len(model.encoder.bias_cache) == 2
    assert torch.equal(model.encode(TEXT, IMAGES).positions, exact)


def test_biases_of_inference_mode_do_not_reach_gradients(model):
    with torch.inference_mode():
        model.encode(TEXT[:, :3], IMAGES)
    with torch.no_grad():
        enc = model.encode(TEXT[:, :3], IMAGES)
    model.decode(TEXT, enc).sum().backward()


def test_validation_reuses_them_from_batch_to_batch(model, monkeypatch):
    calls = computed(model, monkeypatch)
    for _ in range(3):
        model.eval()
        with torch.no_grad():
            model.encode(TEXT, IMAGES)
    assert not calls
    model.train().eval()
    with torch.no_grad():
        model.encode(TEXT, IMAGES)
    assert len(calls) == 1


def test_training_keeps_none(model):
    model.train()
    assert len(model.encoder.bias_cache) == 0
    model.encode(TEXT, IMAGES)
    assert len(model.encoder.bias_cache) == 0


def test_copies_carry_none(model):
    for other in (copy.copy(model.encoder.bias_cache), pickle.loads(pickle.dumps(model)).encoder.bias_cache):
        assert len(other) == 0 and other.max_bytes == model.encoder.bias_cache.max_bytes
    assert len(model.encoder.bias_cache) == 1


def test_the_least_recently_used_goes_first():
    cache, weights = BiasCache(max_bytes=2 * 400), [torch.ones(1)]
    make = {key: ([torch.full((100,), float(key))], torch.ones(1)) for key in range(4)}
    for key in (0, 1, 0, 2):
        assert cache.get(key, weights, lambda key=key: make[key]) is make[key]
    assert len(cache) == 2
    missed = []
    for key in (0, 2, 1):
        cache.get(key, weights, lambda key=key: missed.append(key) or make[key])
    assert missed == [1]
