"""The demo's VQGAN: exact scores of code book entries, files that load, and the program in a few steps."""

import sys

import pytest
import torch
from PIL import Image

from digits import train_vqgan
from models.vqgan import VQGAN, Quantizer


def test_the_highest_score_is_the_nearest_entry():
    torch.manual_seed(0)
    quantizer = Quantizer(train_vqgan.demo_config(64))
    width = quantizer.embed.weight.size(1)
    quantizer.embed.weight.data *= torch.rand(64, 1) * 3  # entries of different lengths need the bias
    train_vqgan.score_by_distance(quantizer)
    z = torch.randn(2, width, 5, 7)
    with torch.no_grad():
        scores = quantizer.proj(z).permute(0, 2, 3, 1)  # (B, h, w, N)
    squares = (z.permute(0, 2, 3, 1)[..., None, :] - quantizer.embed.weight).square().sum(-1)
    assert torch.equal(scores.argmax(-1), squares.argmin(-1)) and len(scores.argmax(-1).unique()) > 10
    between = scores.log_softmax(-1) - (-train_vqgan.SHARPNESS * squares).log_softmax(-1)
    assert between.abs().max() < 1e-2


def test_the_code_book_starts_from_the_encoder(monkeypatch):
    monkeypatch.setattr(train_vqgan, "VECTORS", 600)
    torch.manual_seed(0)
    pool, model = train_vqgan.Pool("train", 10, seed=3), VQGAN(train_vqgan.demo_config(32))
    images = pool.batch(*train_vqgan.KINDS[0])
    with torch.no_grad():
        before = model.decoder(model.post_quant_conv(model.quant_conv(model.encoder(images))))
        train_vqgan.start_book(model, pool)
        z = model.quant_conv(model.encoder(images))
        after = model.decoder(model.post_quant_conv(z))
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)  # the change of scale is undone behind the book
    entries = model.quantize.embed(model.encode(images)).unflatten(1, z.shape[-2:]).permute(0, 3, 1, 2)
    assert (entries - z).square().mean() < 0.7 * (z - z.mean(dim=(0, 2, 3), keepdim=True)).square().mean()


def test_gradients_pass_the_codes():
    torch.manual_seed(0)
    model = VQGAN(train_vqgan.demo_config(16))
    train_vqgan.score_by_distance(model.quantize)
    train_vqgan.quantised_loss(model, torch.rand(2, 3, 32, 32) * 2 - 1).backward()
    for weight in (model.encoder.conv_in.weight, model.quantize.embed.weight, model.decoder.conv_out.weight):
        assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert model.quantize.proj.weight.grad is None


def test_the_program_writes_the_same_files_for_a_seed(tmp_path, monkeypatch, capsys):
    for name, value in (("SCENES", 12), ("CHECKED", 6), ("VECTORS", 600)):
        monkeypatch.setattr(train_vqgan, name, value)
    for name in ("a", "b"):
        files = [str(tmp_path / name) + ending for ending in (".ckpt", ".yaml", ".png")]
        monkeypatch.setattr(
            sys, "argv", ["train_vqgan.py", *files[:2], "--steps", "4", "--codes", "32", "--sheet", files[2]]
        )
        train_vqgan.main()
    printed = capsys.readouterr().out
    assert "step 4/4 codes: loss" in printed and "of 32 codes used" in printed and "of the mean color" in printed
    one, two = (VQGAN.load(tmp_path / f"{name}.ckpt", tmp_path / f"{name}.yaml") for name in "ab")
    assert all(torch.equal(weight, two.state_dict()[name]) for name, weight in one.state_dict().items())
    assert one.config == train_vqgan.demo_config(32) and (tmp_path / "a.ckpt").stat().st_size < 4_200_000
    for side, codes in ((64, 64), (48, 36), (32, 16)):
        found = one.encode(torch.rand(2, 3, side, side) * 2 - 1)
        assert found.shape == (2, codes) and one.decode(found).shape == (2, 3, side, side)
    assert Image.open(tmp_path / "a.png").size == (6 * train_vqgan.SIDE, 2 * train_vqgan.SIDE)


@pytest.mark.parametrize("wrong", [("--steps", "1"), ("--codes", "1"), ("--seed", "-1")])
def test_wrong_numbers_are_refused_in_one_sentence(tmp_path, monkeypatch, capsys, wrong):
    monkeypatch.setattr(sys, "argv", ["train_vqgan.py", str(tmp_path / "a"), str(tmp_path / "b"), *wrong])
    with pytest.raises(SystemExit) as ended:
        train_vqgan.main()
    assert ended.value.code == 2 and wrong[0] in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
