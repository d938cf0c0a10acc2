"""ViT-B/16 as the image trunk: initialization, grids, CLIP's weights; the golden figures are in test_model.py."""

from pathlib import Path

import pytest
import torch

from models.ofa import OFA, OFAConfig
from models.ofa.vit import ViT


@pytest.fixture(scope="module")
def trunk() -> ViT:
    torch.manual_seed(0)
    return ViT(OFAConfig.from_arch("ofa_tiny", resnet_type="ViT-B/16")).eval()


@pytest.mark.parametrize("size", [(224, 224), (230, 239), (48, 80), (224, 320), (16, 16)])
@torch.no_grad()
def test_grids_of_any_image(trunk: ViT, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    features = trunk(images)
    assert features.shape == (2, 768, *trunk.grid(*size)) == (2, 768, size[0] // 16, size[1] // 16)
    whole = images[:, :, : size[0] // 16 * 16, : size[1] // 16 * 16]  # pixels beyond the last whole patch are not seen
    torch.testing.assert_close(features, trunk(whole))
    torch.testing.assert_close(trunk(images[1:]), features[1:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_every_cell_sees_its_own_position(trunk: ViT) -> None:
    gray = torch.zeros(1, 3, 32, 48)
    cells = trunk(gray)[0].flatten(1).t()
    assert (torch.cdist(cells, cells) + torch.eye(6) > 1e-3).all()


def test_initialisation_and_learning() -> None:
    torch.manual_seed(1)
    model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=50, resnet_type="ViT-B/16"))
    block = model.encoder.embed_images.transformer.resblocks[3]  # type: ignore[union-attr,index]
    assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.out_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.in_proj_weight.abs().max().item() == pytest.approx((6 / (4 * 768)) ** 0.5, rel=0.01)
    assert block.attn.in_proj_bias.eq(0).all() and block.mlp.c_fc.bias.eq(0).all()
    assert model.encoder.embed_images.positional_embedding.std().item() == pytest.approx(768**-0.5, rel=0.05)
    model(torch.tensor([[0, 7, 2]]), torch.tensor([[0, 9]]), torch.randn(1, 3, 32, 32)).logsumexp(-1).sum().backward()
    silent = [n for n, p in model.encoder.embed_images.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_an_image_without_a_patch_is_refused() -> None:
    with torch.device("meta"):
        model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=50, resnet_type="ViT-B/16"))
        with pytest.raises(ValueError, match="15x40 pixels has no patch"):
            model.encode(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, 15, 40))


def test_weights_of_clip(trunk: ViT, tmp_path: Path) -> None:
    state = dict(trunk.state_dict())
    last = {name: value for name, value in state.items() if ".resblocks.8." in name}
    state |= {name.replace(".8.", f".{i}."): value for name, value in last.items() for i in (9, 10, 11)}
    state |= {"class_embedding": torch.zeros(768), "proj": torch.zeros(768, 512)}
    state |= {"ln_post.weight": torch.zeros(768), "ln_post.bias": torch.zeros(768)}
    path = tmp_path / "visual.pt"
    torch.save(state, path)
    config = OFAConfig.from_arch("ofa_tiny", resnet_type="ViT-B/16", resnet_model_path=str(path))
    loaded = ViT(config).state_dict()
    assert loaded.keys() == trunk.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in trunk.state_dict().items())
    del state["transformer.resblocks.2.ln_1.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"first at transformer.resblocks.2.ln_1.bias\): name the weights of CLIP's"):
        ViT(config)
