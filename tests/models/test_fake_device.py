"""On a GPU that does not exist (`tests/fake_gpu.py`): the model, losses and VQGAN. Others: `test_pretended_gpu.py`."""

from typing import Any

import pytest
import torch

from criterions.linear_cross_entropy import linear_cross_entropy
from criterions.losses import label_smoothed_cross_entropy
from models.ofa import OFA, OFAConfig
from models.vqgan import VQGAN, VQGANConfig
from tests.fake_gpu import build, fake_gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
B, S, T = 2, 7, 5


def network(dtype: torch.dtype, **options: Any) -> Any:
    return build(lambda: OFA(OFAConfig.from_arch("ofa_demo", code_image_size=32, **options)), dtype)


def inputs(dtype: torch.dtype) -> dict[str, Any]:
    with torch.device("cuda"):
        return {
            "images": torch.zeros(B, 3, 48, 48, dtype=dtype), "flags": torch.ones(B, dtype=torch.bool),
            "source": torch.ones(B, S, dtype=torch.long), "previous": torch.ones(B, T, dtype=torch.long),
        }  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_model_takes_every_kind_of_input(dtype: torch.dtype, training: bool) -> None:
    with fake_gpu():
        given = inputs(dtype)
        images, flags = given["images"], given["flags"]
        for options, more in (
            ({}, {}),
            ({}, {"patch_images": images}),
            ({}, {"patch_images": images, "patch_masks": flags, "sample_patch_num": 3}),
            ({"num_images": 2}, {"patch_images": images, "patch_images_2": images}),
            ({}, {"code_masks": flags}),
            ({"entangle_position_embedding": True, "interpolate_position": True}, {"patch_images": images}),
            ({"freeze_resnet": True, "encoder_drop_path_rate": 0.1}, {"patch_images": images}),
        ):  # fmt: skip
            model = network(dtype, **options).train(training)
            logits = model(given["source"], given["previous"], **more)
            assert logits.device.type == "cuda" and logits.dtype == dtype
            assert logits.shape == (B, T, model.config.vocab_size)


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16], ids=str)
def test_the_losses(autocast: torch.dtype | None) -> None:
    with fake_gpu(), torch.autocast("cuda", autocast or torch.float16, enabled=autocast is not None):
        with torch.device("cuda"):
            features, weight, conf = torch.zeros(B, T, 32), torch.zeros(90, 32), torch.ones(B)
            target = torch.ones(B, T, dtype=torch.long)
        common: dict[str, Any] = dict(pad=1, eos=2, epsilon=0.1)
        for options in ({}, {"conf": conf}, {"drop_worst_ratio": 0.2}, {"ignore_eos": True, "ignore_prefix_size": 1}):
            sums = linear_cross_entropy(features, weight, target, **common, **options)
            assert sums.loss.device.type == "cuda" and sums.loss.dtype == torch.float32
            sums = label_smoothed_cross_entropy(features @ weight.t(), target, **common, **options)
            assert sums.loss.device.type == "cuda"


def test_image_codes() -> None:
    sizes: dict[str, Any] = dict(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), resolution=16)
    with fake_gpu() as stand_in:
        model = build(lambda: VQGAN(VQGANConfig(**sizes)))
        with torch.device("cuda"):
            images = torch.zeros(B, 3, 16, 16)
        assert model.encode(images).device.type == model(images).images.device.type == "cuda" and not stand_in.asked


def test_a_mix_of_devices_would_be_noticed() -> None:
    with fake_gpu():
        given = inputs(torch.float32)
        model = network(torch.float32)
        with pytest.raises(RuntimeError, match="device"):
            model(torch.ones(B, S, dtype=torch.long), given["previous"])


def test_how_often_a_forward_pass_waits_for_the_host() -> None:
    with fake_gpu() as stand_in:
        model, given = network(torch.float32), inputs(torch.float32)
        model(given["source"], given["previous"], patch_images=given["images"])
        assert stand_in.asked == {"_local_scalar_dense": 1}  # whether anything is padding
        stand_in.asked.clear()
        with torch.device("cuda"):
            features, weight = torch.zeros(B, T, 32), torch.zeros(90, 32)
        linear_cross_entropy(features, weight, given["previous"], pad=1, eos=2, epsilon=0.1)
        assert stand_in.asked == {"nonzero": 1}  # which tokens count
