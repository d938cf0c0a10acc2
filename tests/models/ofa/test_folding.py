"""Folded batch norms: the same features, the original weights in everything that is saved, no training."""

import copy
import io

import numpy as np
import pytest
import torch
from forward_cases import TOLERANCE, VARIANTS, load_arrays, make_inputs, make_picture, select

from models.fairseq_ofa import FairseqOFA
from models.ofa import OFA, OFAConfig
from models.ofa.folding import FoldedConv2d, fold_batch_norms
from models.ofa.inference import prepare_for_inference
from models.ofa.resnet import ResNet
from models.weights import load_model, save_model
from utils.errors import UserError

NORMS = {"batch norm": {}, "frozen": {"freeze_resnet": True}, "synchronized": {"sync_bn": True}}
TRUNKS = ["frozen_resnet", "sync_bn", "resnet101", "vit", "scale_resids"]


def trunk(**options) -> ResNet:
    """Statistics as far from those of a new norm as trained ones are."""
    torch.manual_seed(0)
    network = ResNet(OFAConfig.from_arch("ofa_tiny", **options)).eval()
    for name, value in network.state_dict().items():
        kind = name.rsplit(".", 1)[-1]
        if kind == "running_var":
            torch.nn.init.uniform_(value, 0.01, 4.0)
        elif kind in ("running_mean", "bias"):
            torch.nn.init.normal_(value)
        elif value.dim() == 1:
            torch.nn.init.uniform_(value, -0.2, 0.6)
    return network


def demo(**options) -> OFA:
    torch.manual_seed(1)
    return OFA(OFAConfig.from_arch("ofa_demo", **options)).eval()


def inputs(side: int = 48) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {"src_tokens": torch.tensor([[0, 9, 5, 2], [0, 7, 2, 1]]), "patch_images": torch.randn(2, 3, side, side)}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("depth", ["resnet50", "resnet101"])
@torch.no_grad()
def test_features_are_the_same(norm, depth):
    network = trunk(resnet_type=depth, **NORMS[norm])
    images = torch.randn(2, 3, 64, 80)
    expected = network(images)
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in network.modules())
    fold_batch_norms(network)
    assert sum(isinstance(m, FoldedConv2d) for m in network.modules()) == convolutions > 40
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in network.modules())
    assert (network(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", TRUNKS)
@torch.no_grad()
def test_golden_figures(name, golden, make_golden_model):
    figures = golden("forward_tiny_variants.json")["variants"][name]
    case = select(load_arrays("forward_tiny_variants"), name)
    side = figures["picture"]
    given = make_inputs(case, figures["seed"], (side, side))
    given["patch_images"] = torch.from_numpy(make_picture(case, figures["seed"], (side, side)))
    enc = prepare_for_inference(copy.deepcopy(make_golden_model(**VARIANTS[name]))).encode(**given)
    out, real = enc.out[:, case["encoder_positions"], :16].numpy(), ~case["encoder_padding_mask"]
    expected = case["encoder_out"].transpose(1, 0, 2)
    real = real[:, case["encoder_positions"]]
    np.testing.assert_allclose(out[real], expected[real], atol=TOLERANCE)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_weights_are_the_original(tmp_path, norm, dtype):
    model = demo(**NORMS[norm])
    expected = copy.deepcopy(model).to(dtype).state_dict()
    folded = prepare_for_inference(model, dtype)
    for state in (folded.state_dict(), copy.deepcopy(folded).state_dict()):
        assert list(state) == list(expected)
        for key, value in expected.items():
            assert state[key].dtype == value.dtype and torch.equal(state[key], value), key
    save_model(folded, tmp_path / "saved.pt")
    again = load_model(tmp_path / "saved.pt")
    for key, value in again.state_dict().items():
        assert torch.equal(value, expected[key].to(value.dtype)), key
    again.train()  # what is loaded is an ordinary model


def test_a_whole_module_that_is_pickled_stays_folded():
    folded = prepare_for_inference(demo())
    file = io.BytesIO()
    torch.save(folded, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    with torch.no_grad():
        assert torch.equal(again.encode(**inputs()).out, folded.encode(**inputs()).out)
    name = "encoder.embed_images.conv1.weight"
    assert torch.equal(again.state_dict()[name], demo().state_dict()[name])


@pytest.mark.parametrize("kind", [OFA, FairseqOFA])
def test_no_training(kind):
    torch.manual_seed(1)
    folded = prepare_for_inference(kind(OFAConfig.from_arch("ofa_demo")).eval())
    for part in (folded, folded.encoder.embed_images, folded.encoder):
        with pytest.raises(UserError, match=r"neither be trained .*: use the one that load_model returns\.$"):
            part.train()
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    again = prepare_for_inference(demo())
    with pytest.raises(UserError):
        again.train()
    assert not any(module.training for module in again.modules())
    assert again.eval() is again and again.train(False) is again


@pytest.mark.parametrize("kind", [OFA, FairseqOFA])
@pytest.mark.parametrize("part", ["", "encoder", "encoder.embed_images", "encoder.embed_images.layer1.0.bn1"])
def test_no_other_weights(kind, part):
    torch.manual_seed(1)
    folded = prepare_for_inference(kind(OFAConfig.from_arch("ofa_demo")).eval())
    module = folded.get_submodule(part)
    with torch.no_grad():
        before = folded.encode(**inputs()).out
        with pytest.raises(UserError, match="nor take other weights: use"):
            module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})
        if part in ("", "encoder.embed_images.layer1.0.bn1"):
            assert torch.equal(folded.encode(**inputs()).out, before)


@torch.no_grad()
def test_bfloat16_is_closer_to_float32():
    network = trunk()
    images = torch.randn(2, 3, 64, 64)
    expected = network(images)
    plain = copy.deepcopy(network).bfloat16()(images.bfloat16()).float()
    fold_batch_norms(network)
    folded = network.bfloat16()(images.bfloat16()).float()
    assert (folded - expected).norm() < (plain - expected).norm()


def test_a_vit_stays_as_it_is():
    model = demo(resnet_type="ViT-B/16")
    with torch.no_grad():
        before = model.encode(**inputs(64)).out
        assert torch.equal(prepare_for_inference(model).encode(**inputs(64)).out, before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_prepared_twice():
    with torch.no_grad():
        once = prepare_for_inference(demo())
        before = once.encode(**inputs()).out
        assert torch.equal(prepare_for_inference(once).encode(**inputs()).out, before)
