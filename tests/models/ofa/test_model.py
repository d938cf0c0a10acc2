"""The network against figures of the original implementation: names, shapes, forward passes."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.ofa import OFA, OFAConfig

SIZES = ["tiny", "medium", "base", "large", "huge"]
CASES = [
    "text", "image128", "image128_masked", "image128_sampled", "image480", "image_not_square", "codes_short",
    "codes_mixed", "codes_256", "codes_1024",
]  # fmt: skip
IMAGE_SIZES = {"image480": (480, 480), "image_not_square": (96, 160), "codes_mixed": (256, 256)}
# Options of later work (adapters, prompts, ViT trunk) are not among these.
VARIANTS = {
    "frozen_resnet": dict(freeze_resnet=True),
    "sync_bn": dict(sync_bn=True),
    "resnet101": dict(resnet_type="resnet101"),
    "scale_resids": dict(scale_resids=True),
    "no_scales": dict(scale_attn=False, scale_fc=False, scale_heads=False),
    "entangled_positions": dict(entangle_position_embedding=True, disable_entangle=False),
    "interpolate_position": dict(interpolate_position=True),
    # The original cannot switch these two off: the figures are those of the ordinary network.
    "post_norm": {},
    "no_type_embedding": {},
    "attn_scale_factor1": dict(attn_scale_factor=1.0),
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def arrays():
    folder = Path(__file__).parents[2] / "golden"
    return {name: np.load(folder / f"{name}.npz") for name in ("forward_tiny", "forward_tiny_variants")}


@pytest.mark.parametrize("size", SIZES)
def test_state_dict_names_shapes_dtypes(size, golden):
    expected = golden(f"state_dict_{size}.json")
    with torch.device("meta"):
        model = OFA(OFAConfig.from_arch(f"ofa_{size}"))
    actual = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in model.state_dict().items()}
    assert actual == expected["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == expected["parameters"]
    assert sorted(name for name, _ in model.named_buffers()) == sorted(expected["buffers"])


def _inputs(case: dict[str, np.ndarray], seed: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Inputs by the recipe of the golden figures: ids as stored, pictures drawn after them."""
    inputs = {"src_tokens": torch.from_numpy(case["in_src_tokens"]).long()}
    if "in_patch_images_first8" in case:
        picture = _picture(case, seed, size)
        np.testing.assert_array_equal(picture.ravel()[:8], case["in_patch_images_first8"])
        inputs["patch_images"] = torch.from_numpy(picture)
    if "in_patch_masks" in case:
        inputs["patch_masks"] = torch.from_numpy(case["in_patch_masks"])
    return inputs


def _picture(case: dict[str, np.ndarray], seed: int, size: tuple[int, int]) -> np.ndarray:
    """Pixels (B, 3, *size) after the draws of both id arrays from the same generator."""
    rng = np.random.default_rng(seed)
    src, prev = case["in_src_tokens"], case["in_prev_output_tokens"]
    rng.integers(4, 50000, src.shape)
    rng.integers(*((50265, 58457) if "in_code_masks" in case else (4, 50000)), prev.shape)
    return rng.standard_normal((src.shape[0], 3, *size), dtype=np.float32)


def _check_logits(logits: Tensor, case: dict[str, np.ndarray]) -> None:
    """Compares logits (B, T, V) at positions that are not padding."""
    real = case["in_prev_output_tokens"] != 1
    np.testing.assert_allclose(logits.logsumexp(-1).numpy()[real], case["logits_logsumexp"][real], atol=TOLERANCE)
    np.testing.assert_array_equal(logits.argmax(-1).numpy()[real], case["logits_argmax"][real])
    positions = case.get("decoder_positions", np.arange(real.shape[1]))
    for name, first in (("first64", 0), ("codes64", 50265), ("last64", 59393)):
        if f"logits_{name}" in case:
            part = logits[:, positions, first : first + 64].numpy()
            np.testing.assert_allclose(
                part[real[:, positions]], case[f"logits_{name}"][real[:, positions]], atol=TOLERANCE
            )


def _case(arrays, name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}."): arrays[key] for key in arrays if key.startswith(f"{name}.")}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_forward(name, golden, arrays, tiny_model, make_golden_model):
    figures, case = golden("forward_tiny.json")["cases"][name], _case(arrays["forward_tiny"], name)
    model = make_golden_model(code_image_size=256) if name == "codes_1024" else tiny_model
    inputs = _inputs(case, figures["seed"], IMAGE_SIZES.get(name, (128, 128)))
    sampled = 20 if name.endswith("sampled") else None
    random.seed(figures["seed"])
    enc = model.encode(**inputs, sample_patch_num=sampled)
    np.testing.assert_array_equal(enc.padding_mask.numpy(), case["encoder_padding_mask"])
    positions = case["encoder_positions"]
    real = ~case["encoder_padding_mask"][:, positions]
    out = enc.out[:, positions, :16].numpy()
    np.testing.assert_allclose(out[real], case["encoder_out"].transpose(1, 0, 2)[real], atol=TOLERANCE)
    code_masks = torch.from_numpy(case["in_code_masks"]) if "in_code_masks" in case else None
    _check_logits(model.decode(torch.from_numpy(case["in_prev_output_tokens"]).long(), enc, code_masks), case)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_forward_variants(name, golden, arrays, make_golden_model):
    figures, case = golden("forward_tiny_variants.json")["variants"][name], _case(arrays["forward_tiny_variants"], name)
    model = make_golden_model(**VARIANTS[name])
    assert sum(p.numel() for p in model.parameters()) == figures["parameters"]
    side = figures["picture"]
    inputs = _inputs(case, figures["seed"], (side, side))
    inputs["patch_images"] = torch.from_numpy(_picture(case, figures["seed"], (side, side)))
    _check_logits(model(prev_output_tokens=torch.from_numpy(case["in_prev_output_tokens"]).long(), **inputs), case)
