"""The golden forward passes of `ofa_tiny`: inputs by their recipe, and the comparison of logits."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CASES = [
    "text", "image128", "image128_masked", "image128_sampled", "image480", "image_not_square", "codes_short",
    "codes_mixed", "codes_256", "codes_1024",
]  # fmt: skip
IMAGE_SIZES = {"image480": (480, 480), "image_not_square": (96, 160), "codes_mixed": (256, 256)}
# Options of later work (adapters, prompts) are not among these.
VARIANTS = {
    "frozen_resnet": dict(freeze_resnet=True),
    "sync_bn": dict(sync_bn=True),
    "resnet101": dict(resnet_type="resnet101"),
    "vit": dict(resnet_type="ViT-B/16"),
    "vit_other_size": dict(resnet_type="ViT-B/16"),
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


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """Content of forward_tiny.npz or forward_tiny_variants.npz."""
    return dict(np.load(Path(__file__).with_name(f"{name}.npz")))


def select(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Arrays of one case."""
    return {key.removeprefix(f"{name}."): arrays[key] for key in arrays if key.startswith(f"{name}.")}


def make_inputs(case: dict[str, np.ndarray], seed: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Inputs by the recipe of the golden figures: ids as stored, pictures drawn after them."""
    inputs = {"src_tokens": torch.from_numpy(case["in_src_tokens"]).long()}
    if "in_patch_images_first8" in case:
        picture = make_picture(case, seed, size)
        np.testing.assert_array_equal(picture.ravel()[:8], case["in_patch_images_first8"])
        inputs["patch_images"] = torch.from_numpy(picture)
    if "in_patch_masks" in case:
        inputs["patch_masks"] = torch.from_numpy(case["in_patch_masks"])
    return inputs


def make_picture(case: dict[str, np.ndarray], seed: int, size: tuple[int, int]) -> np.ndarray:
    """Pixels (B, 3, *size) after the draws of both id arrays from the same generator."""
    rng = np.random.default_rng(seed)
    src, prev = case["in_src_tokens"], case["in_prev_output_tokens"]
    rng.integers(4, 50000, src.shape)
    rng.integers(*((50265, 58457) if "in_code_masks" in case else (4, 50000)), prev.shape)
    return rng.standard_normal((src.shape[0], 3, *size), dtype=np.float32)


def check_logits(logits: Tensor, case: dict[str, np.ndarray]) -> None:
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
