"""Options of the model without golden figures: two images, absent images, memory savers, caches, limits."""

import random

import pytest
import torch

from models.ofa import OFA, OFAConfig
from models.ofa.config import ARCHITECTURES


@pytest.fixture(scope="module")
def demo():
    torch.manual_seed(0)
    return OFA(OFAConfig.from_arch("ofa_demo", vocab_size=100)).eval()


def tokens(*shape, high=100):
    return torch.randint(4, high, shape, generator=torch.Generator().manual_seed(1))


def images(rows, side=32):
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_second_image_comes_first_and_is_not_ignored(demo):
    one, two = images(2), images(2).flip(0)
    enc = demo.encode(tokens(2, 5), one, torch.tensor([True, True]), patch_images_2=two)
    single = demo.encode(tokens(2, 5), one)
    assert enc.out.shape == (2, 4 + 4 + 5, 128) and enc.padding_mask.shape == (2, 13) and not enc.padding_mask.any()
    assert not torch.allclose(enc.out[:, 4:], single.out)
    assert demo.decode(tokens(2, 3), enc).shape == (2, 3, 100)


@torch.no_grad()
def test_second_image_has_its_own_type_when_the_model_has_two():
    model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=50, num_images=2)).eval()
    assert model.encoder.type_embedding.weight.shape[0] == 3
    pictures, text = images(1), tokens(1, 4, high=50)
    before = model.encode(text, pictures, patch_images_2=pictures).out
    model.encoder.type_embedding.weight[2] += torch.randn(128)
    assert not torch.allclose(before, model.encode(text, pictures, patch_images_2=pictures).out)


@torch.no_grad()
def test_sample_without_image_equals_text_alone(demo):
    text = tokens(2, 6)
    both = demo.encode(text, images(2), torch.tensor([True, False]))
    alone = demo.encode(text)
    torch.testing.assert_close(both.out[1, 4:], alone.out[1], atol=1e-5, rtol=1e-4)
    prev = tokens(2, 4)
    torch.testing.assert_close(demo.decode(prev, both)[1], demo.decode(prev, alone)[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_changes_nothing(demo):
    text = tokens(1, 6)
    padded = torch.cat([text, torch.ones(1, 3, dtype=torch.long)], dim=1)
    prev = tokens(1, 4)
    padded_prev = torch.cat([prev, torch.ones(1, 2, dtype=torch.long)], dim=1)
    torch.testing.assert_close(demo(padded, padded_prev)[:, :4], demo(text, prev), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "trunk", [{}, {"resnet_drop_path_rate": 0.3}, {"freeze_resnet": True}, {"resnet_type": "ViT-B/16"}]
)
@pytest.mark.parametrize("saver", ["checkpoint_activations", "offload_activations", "checkpoint_trunk"])
def test_memory_savers_keep_gradients_and_statistics(saver, trunk):
    gradients, statistics = [], []
    for options in ({}, {saver: True}):
        torch.manual_seed(3)
        rates = dict(dropout=0.1, encoder_drop_path_rate=0.2)
        model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=60, **rates, **trunk, **options))
        torch.manual_seed(4)
        model(tokens(3, 5, high=60), tokens(3, 4, high=60), images(3)).logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        statistics.append(dict(model.named_buffers()))
    assert all(torch.equal(statistics[1][name], value) for name, value in statistics[0].items())
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_drop_path_grows_with_depth_and_acts_in_training_only():
    model = OFA(OFAConfig.from_arch("ofa_tiny", encoder_drop_path_rate=0.3, resnet_drop_path_rate=0.2))
    assert [layer.drop_path.drop_prob for layer in model.encoder.layers] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [layer.drop_path.drop_prob for layer in model.decoder.layers] == [0.0] * 4
    rates = [block.drop_path.drop_prob if block.drop_path else 0.0 for block in model.encoder.embed_images.layer2]
    assert rates == pytest.approx([0.0, 0.2 / 3, 0.4 / 3, 0.2])
    text, prev = tokens(4, 5), tokens(4, 3)
    with torch.no_grad():
        assert torch.equal(model.eval()(text, prev), model(text, prev))
        assert not torch.equal(model.train()(text, prev), model(text, prev))


@torch.no_grad()
def test_one_bias_serves_all_samples():
    model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=50)).eval()
    patches = model.encoder.embed_patches(images(3), torch.ones(3), 1)
    biases, positions = model.encoder._compute_biases([patches], text_length=5)
    assert {bias.shape for bias in biases} == {(1, 4, 9, 9)} and positions.shape[0] == 1


def test_frozen_token_table_and_frozen_batch_norm():
    model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=50, freeze_encoder_embedding=True, freeze_resnet=True))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.embed_tokens.weight"}
    before = model.encoder.embed_images.bn1.running_mean.clone()
    model.train().encode(tokens(2, 3, high=50), images(2))
    assert torch.equal(before, model.encoder.embed_images.bn1.running_mean)


@torch.no_grad()
def test_sampled_patches_with_interpolated_positions():
    model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=50, interpolate_position=True, orig_patch_image_size=32))
    enc = model.eval().encode(tokens(2, 3, high=50), images(2, 64), sample_patch_num=6)
    assert enc.out.shape == (2, 9, 128) and enc.positions.shape == (2, 9, 128)


@torch.no_grad()
def test_patches_are_drawn_from_the_callers_generator(demo):
    """Without one, from Python's global generator, as the original draws them."""
    text, pictures = tokens(2, 3), images(2)

    def positions(generator):
        return demo.encode(text, pictures, sample_patch_num=2, patch_generator=generator).positions

    random.seed(7)
    default = positions(None)
    state = random.getstate()
    assert torch.equal(positions(random.Random(7)), default) and random.getstate() == state
    assert any(not torch.equal(positions(random.Random(seed)), default) for seed in range(5))
    generator = random.Random(7)
    assert any(not torch.equal(positions(generator), default) for _ in range(5))


@pytest.mark.parametrize(
    ("call", "numbers"),
    [
        (lambda m: m.encode(tokens(1, 1025)), ["1025", "1024"]),
        (lambda m: m.encode(tokens(1, 3), torch.zeros(1, 3, 16, 688)), ["688", "43", "42", "672"]),
        (lambda m: m.decode(tokens(1, 1025), m.encode(tokens(1, 3))), ["1025", "1024"]),
        (lambda m: m.decode(tokens(1, 1027), m.encode(tokens(1, 3)), torch.tensor([True])), ["1027", "1026"]),
        (lambda m: m.encode(tokens(1, 3), images(1), sample_patch_num=5), ["5", "4"]),
    ],
    ids=["source", "image", "target", "codes", "patches"],
)
def test_what_cannot_be_represented_says_so_in_numbers(demo, call, numbers):
    with pytest.raises(ValueError) as caught, torch.no_grad():
        call(demo)
    assert all(number in str(caught.value) for number in numbers)


@pytest.mark.parametrize(
    "options",
    [{"encoder_embed_dim": 64}, {"decoder_attention_heads": 5}, {"resnet_type": "vgg"}, {"num_images": 3}, {"x": 1}],
)
def test_bad_configurations_are_refused(options):
    with pytest.raises(ValueError):
        OFAConfig.from_arch("ofa_demo", **options)


def test_unknown_size_names_the_known_ones():
    with pytest.raises(ValueError, match="ofa_tiny"):
        OFAConfig.from_arch("ofa_giant")
    assert len(ARCHITECTURES) == 6


def test_initialization():
    model = OFA(OFAConfig.from_arch("ofa_tiny"))
    state = model.state_dict()
    for name in (
        "encoder.embed_tokens.weight",
        "encoder.image_rel_pos_table_list.0.weight",
        "decoder.layers.1.fc1.weight",
    ):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.05) and abs(state[name].mean().item()) < 1e-3
    assert state["encoder.embed_tokens.weight"][1].abs().sum() > 0  # the padding row is drawn like the others
    assert state["decoder.layers.0.fc1.bias"].abs().max() == 0 and state["encoder.layer_norm.weight"].min() == 1
    assert state["encoder.layers.0.self_attn.c_attn"].eq(1).all()
