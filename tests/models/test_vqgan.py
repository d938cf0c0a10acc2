"""VQGAN: the released figures, files in the released layout, pixels, draws of codes, training."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from models.vqgan import VQGAN, VQGANConfig, from_pil, sample_codes, to_pil
from utils.errors import UserError

SMALL = VQGANConfig(
    ch=16, ch_mult=(1, 1, 2, 2), num_res_blocks=1, attn_resolutions=(4,), resolution=32, z_channels=16, embed_dim=16,
    n_embed=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def released():
    """The released width, with the weights the golden figures were measured with."""
    from weights import fill_

    return fill_(VQGAN()).eval()


@pytest.fixture(scope="module")
def figures(golden):
    found = golden("vqgan.json")
    rng = np.random.default_rng(4100)
    image = torch.from_numpy(rng.uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32))
    codes = torch.from_numpy(rng.integers(0, 8192, (2, 8, 8)))
    assert codes.tolist() == found["codes"]
    return found, image, codes


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return VQGAN(SMALL).eval()


def test_names_and_shapes_are_the_released_ones(released, figures):
    state = released.state_dict()
    assert {name: [list(t.shape), "float32"] for name, t in state.items()} == figures[0]["state_dict"]
    assert len(state) == 301 and sum(t.numel() for t in state.values()) == 68_995_971


def test_encoder_gives_the_released_figures(released, figures):
    found, image, _ = figures
    with torch.no_grad():
        logits = released.logits(image)
    assert logits.argmax(dim=1).tolist() == found["encoder_argmax"]
    assert [logits.mean().item(), logits.std().item()] == pytest.approx(found["encoder_logits_mean_std"], abs=1e-5)
    expected = torch.tensor(found["encoder_logits_slice"])
    torch.testing.assert_close(logits[:, :4, :2, :2], expected, atol=1e-4, rtol=0)
    assert released.encode(image).tolist() == [sum(rows, []) for rows in found["encoder_argmax"]]


def test_decoder_gives_the_released_figures(released, figures):
    found, _, codes = figures
    images = released.decode(codes)
    assert list(images.shape) == found["decoded_shape"]
    assert [images.mean().item(), images.std().item()] == pytest.approx(found["decoded_mean_std"], abs=1e-5)
    torch.testing.assert_close(images[:, :, ::16, ::16], torch.tensor(found["decoded_slice"]), atol=1e-3, rtol=0)
    torch.testing.assert_close(released.decode(codes.flatten(1)), images)


def test_oblong_images_make_oblong_grids(small):
    image = torch.rand(1, 3, 16, 32)
    assert small.logits(image).shape == (1, 64, 2, 4)
    assert small.decode(small.encode(image).unflatten(1, (2, 4))).shape == image.shape


@pytest.mark.parametrize(
    ("codes", "message"),
    [([[0, 1, 64, 0]], "64 is outside 0..63"), ([[0, -1, 0, 0]], "-1 is outside"), ([[0, 1]], "do not make a square")],
)
def test_impossible_codes_are_refused(small, codes, message):
    with pytest.raises(ValueError, match=message):
        small.decode(torch.tensor(codes))


def test_impossible_sides_are_refused(small):
    with pytest.raises(ValueError, match="20 x 16 pixels"):
        small.encode(torch.zeros(1, 3, 16, 20))


# draws


def test_draws_follow_the_softmax_of_the_scores():
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    drawn = sample_codes(logits.view(1, 4, 1, 1).expand(1, 4, 200, 200), torch.Generator().manual_seed(1))
    share = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    torch.testing.assert_close(share, logits.softmax(0), atol=0.01, rtol=0)


def test_argmax_repeats_and_draws_depend_on_the_generator_only(small):
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(small.encode(image), small.encode(image))
    first, again, other = (
        small.encode(image, sample=True, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (2, 16) and first.dtype == torch.int64


# pixels


def test_fractions_of_a_pixel_value_are_cut_off():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.999, 1.0, 3.0])
    (image,) = to_pil(values.view(1, 1, 1, 7).expand(1, 3, 1, 7))
    assert image.mode == "RGB" and image.size == (7, 1)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 63, 127, 254, 255, 255]


def test_square_images_keep_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    tensor = from_pil(Image.fromarray(pixels), 16)
    assert tensor.min() >= -1 and tensor.max() <= 1
    np.testing.assert_allclose(tensor.permute(1, 2, 0).numpy(), pixels / 255 * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_the_centre_of_an_oblong_image_is_taken(size):
    image = Image.new("L", size, 0)
    image.paste(255, (size[0] // 2 - 16, size[1] // 2 - 16, size[0] // 2 + 16, size[1] // 2 + 16))
    tensor = from_pil(image, 32)
    assert tensor.shape == (3, 32, 32) and tensor.min() == 1  # no resize was needed
    assert from_pil(image, 16)[:, 4:-4, 4:-4].min() > 0.99


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        from_pil(Image.new("RGB", (0, 5)), 8)


# files


class Callback:
    """What Lightning leaves in its files besides weights."""

    def __init__(self) -> None:
        self.best = 1.0


def test_saved_files_load_with_the_same_codes(small, tmp_path):
    small.save(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    loaded = VQGAN.load(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    assert loaded.config == SMALL and not loaded.training
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded.encode(image), small.encode(image))


def test_a_lightning_file_loads_without_its_classes(small, tmp_path, monkeypatch):
    small.save(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    extras = {"loss.discriminator.weight": torch.zeros(2)}
    content = {
        "epoch": 3, "callbacks": {Callback: {"best": Callback()}}, "hyper": [Callback()], "score": np.float64(2),
        "state_dict": {**small.state_dict(), **extras},
    }  # fmt: skip
    torch.save(content, tmp_path / "last.ckpt")
    ran = []
    monkeypatch.setattr(Callback, "__setstate__", lambda *_: ran.append(1), raising=False)
    loaded = VQGAN.load(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    assert torch.equal(loaded.quantize.embed.weight, small.quantize.embed.weight) and not ran


def test_code_in_a_checkpoint_is_not_run(tmp_path, small):
    small.save(tmp_path / "last.ckpt", tmp_path / "model.yaml")

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "written"), "w")

    torch.save({"state_dict": small.state_dict(), "callbacks": Evil()}, tmp_path / "last.ckpt")
    try:
        VQGAN.load(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    except UserError:
        pass
    assert not (tmp_path / "written").exists()


def test_weights_that_do_not_fit_are_named(small, tmp_path):
    checkpoint, config = tmp_path / "last.ckpt", tmp_path / "model.yaml"
    small.save(checkpoint, config)
    state = small.state_dict()
    without = {name: t for name, t in state.items() if name != "quantize.proj.bias"}
    wrong = {**state, "quantize.proj.bias": torch.zeros(3)}
    for content, message in (
        (without, "lacks 1 tensors, the first is quantize.proj.bias"),
        ({**state, "encoder.extra": torch.zeros(1)}, "has besides 1 tensors, the first is encoder.extra"),
        (wrong, "in another shape 1 tensors"),
    ):
        torch.save({"state_dict": content}, checkpoint)
        with pytest.raises(UserError, match=message):
            VQGAN.load(checkpoint, config)


def test_damaged_and_missing_files_are_one_sentence(small, tmp_path):
    checkpoint, config = tmp_path / "last.ckpt", tmp_path / "model.yaml"
    small.save(checkpoint, config)
    with pytest.raises(UserError, match="no checkpoint .*other.ckpt"):
        VQGAN.load(tmp_path / "other.ckpt", config)
    with pytest.raises(UserError, match="Cannot read .*other.yaml"):
        VQGAN.load(checkpoint, tmp_path / "other.yaml")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged"):
        VQGAN.load(checkpoint, config)


def test_the_released_yaml_is_read_without_its_classes(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("""model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.GumbelVQ
  params:
    kl_weight: 1.0e-08
    embed_dim: 256
    n_embed: 8192
    monitor: val/rec_loss
    temperature_scheduler_config:
      target: taming.lr_scheduler.LambdaWarmUpCosineScheduler
      params: {warm_up_steps: 0, lr_min: 1.0e-06}
    ddconfig:
      double_z: false
      z_channels: 256
      resolution: 256
      in_channels: 3
      out_ch: 3
      ch: 128
      ch_mult: [1, 1, 2, 4]
      num_res_blocks: 2
      attn_resolutions: [32]
      dropout: 0.0
      unheard_of: 3
    lossconfig: {target: taming.modules.losses.vqperceptual.DummyLoss}
""")
    assert VQGANConfig.from_yaml(path) == VQGANConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"double_z": True}, "double_z"),
        ({"ch": "wide"}, "wrong type"),
        ({"ch_mult": 3}, "impossible size"),
        ({"ch_mult": [1]}, "impossible size"),
        (None, "no model.params.ddconfig"),
    ],
)
def test_other_yaml_files_are_refused(tmp_path, change, message):
    content = yaml.safe_load(SMALL.to_yaml())
    if change is None:
        content = {"model": {}}
    else:
        content["model"]["params"]["ddconfig"].update(change)
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        VQGANConfig.from_yaml(path)


# training


def test_training_reaches_every_weight_and_lowers_the_loss():
    torch.manual_seed(1)
    model = VQGAN(SMALL).train()
    images = torch.rand(4, 3, 1, 1).expand(4, 3, 32, 32) * 2 - 1  # four plain colors
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        out = model(images, temperature=1.0)
        loss = (out.images - images).abs().mean() + 1e-4 * out.kl
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_divergence_from_the_uniform_distribution():
    model = VQGAN(SMALL)
    torch.nn.init.zeros_(model.quantize.proj.weight)
    torch.nn.init.zeros_(model.quantize.proj.bias)
    assert model(torch.zeros(1, 3, 16, 16)).kl.item() == pytest.approx(0, abs=1e-6)
    model.quantize.proj.bias.data[5] = 100.0  # certain of one code
    assert model(torch.zeros(1, 3, 16, 16)).kl.item() == pytest.approx(np.log(64), abs=1e-5)
