"""The model against figures of the original implementation: names, shapes, forward passes."""

import random

import numpy as np
import pytest
import torch
from forward_cases import (
    CASES,
    IMAGE_SIZES,
    TOLERANCE,
    VARIANTS,
    check_logits,
    load_arrays,
    make_inputs,
    make_picture,
    select,
)

from models.ofa import OFA, OFAConfig

SIZES = ["tiny", "medium", "base", "large", "huge"]


@pytest.fixture(scope="module")
def arrays():
    return {name: load_arrays(name) for name in ("forward_tiny", "forward_tiny_variants")}


@pytest.mark.parametrize("size", SIZES)
def test_state_dict_names_shapes_dtypes(size, golden):
    expected = golden(f"state_dict_{size}.json")
    with torch.device("meta"):
        model = OFA(OFAConfig.from_arch(f"ofa_{size}"))
    actual = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in model.state_dict().items()}
    assert actual == expected["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == expected["parameters"]
    assert sorted(name for name, _ in model.named_buffers()) == sorted(expected["buffers"])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_forward(name, golden, arrays, tiny_model, make_golden_model):
    figures, case = golden("forward_tiny.json")["cases"][name], select(arrays["forward_tiny"], name)
    model = make_golden_model(code_image_size=256) if name == "codes_1024" else tiny_model
    inputs = make_inputs(case, figures["seed"], IMAGE_SIZES.get(name, (128, 128)))
    sampled = 20 if name.endswith("sampled") else None
    generator = random.Random(figures["seed"])
    enc = model.encode(**inputs, sample_patch_num=sampled, patch_generator=generator)
    np.testing.assert_array_equal(enc.padding_mask.numpy(), case["encoder_padding_mask"])
    positions = case["encoder_positions"]
    real = ~case["encoder_padding_mask"][:, positions]
    out = enc.out[:, positions, :16].numpy()
    np.testing.assert_allclose(out[real], case["encoder_out"].transpose(1, 0, 2)[real], atol=TOLERANCE)
    code_masks = torch.from_numpy(case["in_code_masks"]) if "in_code_masks" in case else None
    check_logits(model.decode(torch.from_numpy(case["in_prev_output_tokens"]).long(), enc, code_masks), case)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_forward_variants(name, golden, arrays, make_golden_model):
    figures, case = (
        golden("forward_tiny_variants.json")["variants"][name],
        select(arrays["forward_tiny_variants"], name),
    )
    model = make_golden_model(**VARIANTS[name])
    assert sum(p.numel() for p in model.parameters()) == figures["parameters"]
    side = figures["picture"]
    inputs = make_inputs(case, figures["seed"], (side, side))
    inputs["patch_images"] = torch.from_numpy(make_picture(case, figures["seed"], (side, side)))
    enc = model.encode(**inputs)
    positions, real = case["encoder_positions"], ~case["encoder_padding_mask"]
    np.testing.assert_array_equal(enc.padding_mask.numpy(), ~real)
    out, expected = enc.out[:, positions, :16].numpy(), case["encoder_out"].transpose(1, 0, 2)
    np.testing.assert_allclose(out[real[:, positions]], expected[real[:, positions]], atol=TOLERANCE)
    check_logits(model.decode(torch.from_numpy(case["in_prev_output_tokens"]).long(), enc), case)


def test_vit_names_and_shapes(golden):
    figures = golden("forward_tiny_variants.json")["variants"]["vit"]
    with torch.device("meta"):
        states = [OFA(OFAConfig.from_arch("ofa_tiny", **more)).state_dict() for more in ({}, VARIANTS["vit"])]
    resnet, vit = ({name: list(value.shape) for name, value in state.items()} for state in states)
    assert {name: shape for name, shape in vit.items() if name not in resnet} == figures["entries_added"]
    removed = figures["entries_removed"]
    assert len(resnet.keys() - vit.keys()) == (int(removed.split()[0]) if isinstance(removed, str) else len(removed))
    changed = {name: shape for name, shape in vit.items() if resnet.get(name, shape) != shape}
    assert changed == figures["entries_of_other_shape"]


@torch.no_grad()
def test_samples_that_share_images_are_encoded_as_with_their_own(tiny_model):
    torch.manual_seed(0)
    images, rows = torch.randn(2, 3, 64, 64), torch.tensor([1, 0, 1])
    tokens = torch.tensor([[0, 5, 6, 2], [0, 5, 2, 1], [0, 2, 1, 1]])
    masks = torch.tensor([True, True, False])
    shared = tiny_model.encode(tokens, images, masks, image_rows=rows)
    own = tiny_model.encode(tokens, images[rows], masks)
    torch.testing.assert_close(shared.out, own.out, rtol=0, atol=1e-5)
    assert torch.equal(shared.padding_mask, own.padding_mask) and torch.equal(shared.positions, own.positions)
    without = tiny_model.encode(tokens, images, image_rows=rows)
    torch.testing.assert_close(without.out, tiny_model.encode(tokens, images[rows]).out, rtol=0, atol=1e-5)
