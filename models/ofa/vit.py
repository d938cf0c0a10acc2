"""Image trunk: the first nine blocks of CLIP's ViT-B/16 (Radford et al. 2021, arXiv:2103.00020)."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ofa.config import OFAConfig
from models.ofa.recompute import run_blocks
from models.ofa.resnet import STRIDE, load_trunk

BLOCKS, WIDTH, HEADS = 9, 768, 12
SIDE = 14  # cells a side of the grid that the positions are learned for: 224 pixels
# What CLIP's model has beyond the trunk.
BEYOND = ("class_embedding", "proj", "ln_post.", *(f"transformer.resblocks.{i}." for i in range(BLOCKS, 12)))


class ViT(nn.Module):
    """Pixels (B, 3, R, R') -> features (B, 768, R // 16, R' // 16); no class token, no norm at the end."""

    channels = WIDTH

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        self.recompute = config.checkpoint_trunk
        self.conv1 = nn.Conv2d(3, WIDTH, kernel_size=STRIDE, stride=STRIDE, bias=False)
        # The first row belonged to the class token.
        self.positional_embedding = nn.Parameter(torch.randn(1 + SIDE**2, WIDTH) * WIDTH**-0.5)
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*(_Block() for _ in range(BLOCKS)))})
        if config.resnet_model_path is not None:
            load_trunk(self, config.resnet_model_path, BEYOND, "name the weights of CLIP's ViT-B/16 or of its trunk")

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self._positions(height, width)  # (B, P, 768)
        x = run_blocks(self.transformer["resblocks"].children(), self.ln_pre(x), self.recompute)
        return x.transpose(1, 2).unflatten(2, (height, width))

    def _positions(self, height: int, width: int) -> Tensor:
        """Position embeddings (P, 768) of a grid, interpolated where it is not the one they were learned for."""
        table = self.positional_embedding[1:]
        if (height, width) == (SIDE, SIDE):
            return table
        grid = table.t().unflatten(1, (SIDE, SIDE))[None]  # (1, 768, 14, 14)
        return F.interpolate(grid, size=(height, width), mode="bilinear")[0].flatten(1).t()

    @staticmethod
    def grid(height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the feature map of an image: what is left of 16 pixels at its edge is not seen."""
        return height // STRIDE, width // STRIDE


class _Block(nn.Module):
    """(B, P, 768) -> (B, P, 768); norms before attention and feed-forward layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_1 = nn.LayerNorm(WIDTH)
        layers = {"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "gelu": _QuickGELU(), "c_proj": nn.Linear(4 * WIDTH, WIDTH)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class _QuickGELU(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)
