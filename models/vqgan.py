"""Gumbel VQGAN: images to codes and back (Esser et al., 2021, arXiv:2012.09841; released: f = 8, 8,192 codes).

Names and shapes of the state dict are those of the released `last.ckpt`. Shapes: B images, R image side, h and w
grid of codes (R / 8), C channels, N codes of the code book.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn

from data.images import to_rgb
from models.ofa.attention import attend
from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.files import RepeatedKeyError, atomic_write, read_text, unrepeated
from utils.lightning import load_lightning_weights
from utils.option_values import LARGEST, odd_option


def _check_keys(node: yaml.Node) -> None:
    """Raises RepeatedKeyError for a key that a mapping of a YAML text has twice."""
    seen, left = set[int](), [node]
    while left:  # a node may stand in several places, even in itself
        node = left.pop()
        if isinstance(node, yaml.MappingNode) and id(node) not in seen:
            seen.add(id(node))
            unrepeated([(key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)])
            left += [value for _, value in node.value]


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes under the names of the released `model.yaml`; the defaults are the released ones."""

    ch: int = 128  # channels at full resolution
    ch_mult: tuple[int, ...] = (1, 1, 2, 4)  # factor of ch per level; each level halves the side of the one before
    num_res_blocks: int = 2  # per level of the encoder; the decoder has one more
    attn_resolutions: tuple[int, ...] = (32,)  # sides of the levels with attention, for images of `resolution`
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    z_channels: int = 256
    dropout: float = 0.0
    embed_dim: int = 256
    n_embed: int = 8192
    kl_weight: float = 1e-8  # training: weight of VQGANOutput.kl

    @classmethod
    def from_yaml(cls, path: Path) -> "VQGANConfig":
        """Reads `model.params` of a file in the released layout; the classes it names are not imported.

        Raises:
            UserError: unreadable, of another layout, or an architecture that this is not.
        """
        try:
            text = read_text(path)
            _check_keys(yaml.compose(text, yaml.SafeLoader))
            params = yaml.safe_load(text)["model"]["params"]
            found = {**params, **params["ddconfig"]}
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror}; name the VQGAN's model.yaml.") from error
        except RepeatedKeyError as error:
            raise UserError(f"{path} cannot be used: {error}; remove one.") from error
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} has no model.params.ddconfig: name the VQGAN's model.yaml.") from error
        if found.get("double_z"):
            raise UserError(f"{path} sets double_z, which an image code model cannot use: set it to false.")
        try:
            config = cls(**{f.name: _like(f.default, found[f.name]) for f in fields(cls) if f.name in found})
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{path} has a value of the wrong type ({error!s:.200}): compare it with the released one."
            ) from error
        if odd := odd_option(cls, asdict(config)) or config._impossible():
            raise UserError(f"{path} has an impossible size ({odd}): compare it with the released one.")
        return config

    def _impossible(self) -> str | None:
        """The first size of which no model can be built, as "name = value"."""
        for name in (
            "ch",
            "num_res_blocks",
            "resolution",
            "in_channels",
            "out_ch",
            "z_channels",
            "embed_dim",
            "n_embed",
        ):
            if not 1 <= getattr(self, name) <= (100 if name == "num_res_blocks" else LARGEST):
                return f"{name} = {getattr(self, name)}"
        if not 2 <= len(self.ch_mult) <= 16 or not all(1 <= mult <= 1024 for mult in self.ch_mult):
            return f"ch_mult = {list(self.ch_mult)!s:.60}"
        return None

    def to_yaml(self) -> str:
        """The released layout, from which `from_yaml` reads these sizes."""
        outside = ("embed_dim", "n_embed", "kl_weight")
        sizes = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        params = {name: sizes.pop(name) for name in outside}
        return yaml.safe_dump(
            {"model": {"params": {**params, "ddconfig": {"double_z": False, **sizes}}}}, sort_keys=False
        )

    @property
    def factor(self) -> int:
        """Pixels per side of a code."""
        return 2 ** (len(self.ch_mult) - 1)

    def widths(self) -> list[int]:
        """Channels of each level, full resolution first."""
        return [self.ch * mult for mult in self.ch_mult]

    def attends(self, level: int) -> bool:
        """Whether a level has attention; fixed by the configuration, not by the image."""
        return self.resolution // 2**level in self.attn_resolutions


def _like(default: Any, value: Any) -> Any:
    """`value` in the type of a field's default; YAML 1.1 reads 1e-8 as text."""
    if isinstance(default, tuple):
        return tuple(int(entry) for entry in (value if isinstance(value, list) else [value]))
    return type(default)(value)


class VQGANOutput(NamedTuple):
    """What training needs of a pass."""

    images: Tensor  # (B, 3, R, R) reconstruction, unbounded
    logits: Tensor  # (B, N, h, w) of the codes
    kl: Tensor  # (): mean over positions of KL(q || uniform), in nats


def _norm(channels: int) -> nn.GroupNorm:
    # 32 groups as released; narrow models have as many channels in a group as the narrowest level released.
    return nn.GroupNorm(math.gcd(32, max(1, channels // 4)), channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two normalized 3x3 convolutions and a shortcut: (B, C, h, w) -> (B, C', h, w)."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width_in), _norm(width_out)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.nin_shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (f(y).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))  # (B, 1, h * w, C)
        out = attend(q * x.size(1) ** -0.5, k, v)[:, 0].transpose(1, 2)  # (B, C, h * w)
        return x + self.proj_out(out.reshape(x.shape))


class Downsample(nn.Module):
    """Half the side; the padding is on the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side by repetition, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the level has it."""

    def __init__(self, width_in: int, width_out: int, blocks: int, attention: bool, dropout: float) -> None:
        super().__init__()
        widths = [width_in] + [width_out] * blocks
        self.block = nn.ModuleList(ResBlock(a, b, dropout) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttentionBlock(width_out) for _ in range(blocks if attention else 0))

    def run_blocks(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
        return x


class DownLevel(Level):
    """Blocks, then half the side except at the last level."""

    def __init__(self, config: VQGANConfig, level: int) -> None:
        widths = config.widths()
        width_in = widths[level - 1] if level else config.ch
        super().__init__(width_in, widths[level], config.num_res_blocks, config.attends(level), config.dropout)
        self.downsample = Downsample(widths[level]) if level + 1 < len(widths) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.run_blocks(x))


class UpLevel(Level):
    """One block more than the encoder's level, then twice the side except at full resolution."""

    def __init__(self, config: VQGANConfig, level: int) -> None:
        widths = config.widths()
        width_in = widths[min(level + 1, len(widths) - 1)]
        super().__init__(width_in, widths[level], config.num_res_blocks + 1, config.attends(level), config.dropout)
        self.upsample = Upsample(widths[level]) if level else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.run_blocks(x))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.block_1, self.block_2 = ResBlock(width, width, dropout), ResBlock(width, width, dropout)
        self.attn_1 = AttentionBlock(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images (B, 3, R, R) -> features (B, z_channels, h, w)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        top = config.widths()[-1]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(DownLevel(config, level) for level in range(len(config.ch_mult)))
        self.mid = Middle(top, config.dropout)
        self.norm_out = _norm(top)
        self.conv_out = nn.Conv2d(top, config.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features (B, z_channels, h, w) -> images (B, 3, R, R), unbounded."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        bottom, *_, top = config.widths()
        self.conv_in = nn.Conv2d(config.z_channels, top, 3, padding=1)
        self.mid = Middle(top, config.dropout)
        self.up = nn.ModuleList(UpLevel(config, level) for level in range(len(config.ch_mult)))
        self.norm_out = _norm(bottom)
        self.conv_out = nn.Conv2d(bottom, config.out_ch, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.mid(self.conv_in(features))
        for level in reversed(self.up):  # numbered from full resolution
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    """The code book and the scores of its entries."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.embed_dim, config.n_embed, 1)
        self.embed = nn.Embedding(config.n_embed, config.embed_dim)


class VQGAN(nn.Module):
    """Images in [-1, 1] <-> codes; differentiable as a whole in `forward`, for training."""

    def __init__(self, config: VQGANConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VQGANConfig()
        self.encoder, self.decoder, self.quantize = Encoder(config), Decoder(config), Quantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    @classmethod
    def load(cls, checkpoint: str | Path, config_yaml: str | Path, device: str | torch.device = "cpu") -> "VQGAN":
        """The model of a Lightning checkpoint (released: `last.ckpt`, `model.yaml`), float32, in eval mode.

        Names that start with `loss.` are left out; nothing the files name is imported or run.

        Raises:
            UserError: a file that is missing, damaged or of another layout, or weights that do not fit the sizes.
        """
        with torch.device("meta"):
            model = cls(VQGANConfig.from_yaml(Path(config_yaml)))
        weights = load_lightning_weights(Path(checkpoint))
        state = {name: weight.float() for name, weight in weights.items() if not name.startswith("loss.")}
        _check_fit(state, model.state_dict(), f"{checkpoint} does not fit {config_yaml}")
        model.load_state_dict(state, assign=True)
        return model.requires_grad_(False).to(device).eval()

    def save(self, checkpoint: str | Path, config_yaml: str | Path) -> None:
        """Writes both files in the released layout; `load` reads them."""
        save_checkpoint({"state_dict": self.state_dict()}, checkpoint)
        with atomic_write(config_yaml) as file:
            file.write(self.config.to_yaml().encode())

    def logits(self, images: Tensor) -> Tensor:
        """Scores of the codes.

        Args:
            images: (B, 3, H, W) in [-1, 1], sides divisible by 8 (`config.factor`).
        Returns:
            (B, N, H / 8, W / 8).
        Raises:
            ValueError: a side that is not divisible.
        """
        factor = self.config.factor
        if images.size(-1) % factor or images.size(-2) % factor:
            raise ValueError(f"the image is {images.size(-1)} x {images.size(-2)} pixels, not multiples of {factor}")
        return self.quantize.proj(self.quant_conv(self.encoder(images)))

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Codes of images, row by row: the most likely ones, or one draw as the released data were made.

        Args:
            images: (B, 3, H, W) in [-1, 1]. sample: add Gumbel noise to the scores (temperature 1).
            generator: source of the noise, on the images' device; None takes torch's own.
        Returns:
            (B, H / 8 * W / 8), int64.
        Raises:
            ValueError: a side that is not divisible by 8.
        """
        logits = self.logits(images)
        return (sample_codes(logits, generator) if sample else logits.argmax(dim=1)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Images of codes.

        Args:
            codes: (B, h * w) of a square grid, or (B, h, w); integers from 0.
        Returns:
            (B, 3, 8 * h, 8 * w), unbounded; see `to_pil`.
        Raises:
            ValueError: codes outside the code book, or a number of them that makes no square.
        """
        codes = codes.to(self.quantize.embed.weight.device, torch.int64)
        if codes.dim() == 2:
            side = math.isqrt(codes.size(1))
            if side == 0 or side * side != codes.size(1):
                raise ValueError(f"{codes.size(1)} codes do not make a square image")
            codes = codes.unflatten(1, (side, side))
        outside = (codes < 0) | (codes >= self.config.n_embed)
        if bool(outside.any()):
            raise ValueError(f"code {int(codes[outside][0])} is outside 0..{self.config.n_embed - 1}")
        return self._images(self.quantize.embed(codes).permute(0, 3, 1, 2))

    def forward(self, images: Tensor, temperature: float = 1.0) -> VQGANOutput:
        """Images through one-hot draws of their codes, gradients straight through (Jang et al., arXiv:1611.01144).

        The loss of the original is a distance of `images` to the input plus `config.kl_weight * kl`.

        Args:
            images: (B, 3, R, R) in [-1, 1]. temperature: of the Gumbel softmax, above 0.
        """
        logits = self.logits(images)
        chosen = F.gumbel_softmax(logits, tau=temperature, hard=True, dim=1)  # (B, N, h, w)
        book = self.quantize.embed.weight
        log_q = logits.log_softmax(dim=1)
        kl = (log_q.exp() * (log_q + math.log(self.config.n_embed))).sum(dim=1).mean()
        return VQGANOutput(self._images(torch.einsum("bnhw,nc->bchw", chosen, book)), logits, kl)

    def _images(self, entries: Tensor) -> Tensor:
        """Code book entries (B, C, h, w) -> (B, 3, 8 * h, 8 * w)."""
        return self.decoder(self.post_quant_conv(entries.contiguous()))


def _check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raises UserError unless names and shapes agree: the original loads whatever fits and leaves the rest random."""
    missing = [name for name in wanted if name not in state]
    surplus = [name for name in state if name not in wanted]
    other = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    for names, problem in ((missing, "lacks"), (surplus, "has besides"), (other, "has in another shape")):
        if names:
            raise UserError(
                f"{what}: it {problem} {len(names)} tensors, the first is {names[0]}; use the two files of one VQGAN."
            )


def sample_codes(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One draw from softmax(logits) along dimension -3: (..., N, h, w) -> (..., h, w), int64.

    The original draws a hard Gumbel softmax sample and takes its index, which is this distribution.
    """
    waiting = torch.empty_like(logits, dtype=torch.float32).exponential_(generator=generator)
    return (logits.float() - waiting.log()).argmax(dim=-3)


def from_pil(image: Image.Image, size: int) -> Tensor:
    """Image -> (3, R, R) float32 in [-1, 1], R = `size`: short side resized (Lanczos), then the center.

    For square images this is what the original does; others it leaves oblong, which makes no square grid of codes.

    Raises:
        ValueError: an image without pixels, or of no known range of values.
    """
    if 0 in image.size:
        raise ValueError(f"the image is {image.width} x {image.height} pixels")
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    resized = to_rgb(image).resize((width, height), Image.Resampling.LANCZOS)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.array(resized.crop((left, top, left + size, top + size)))  # (R, R, 3) uint8
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255).mul(2).sub(1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] -> RGB images; values outside are clamped, fractions of 1/255 cut off as released."""
    pixels = ((images.float().clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
