"""Trains a small VQGAN on digit scenes: twelve minutes on one core.

    python -m digits.train_vqgan OUT.ckpt OUT.yaml [--seed 1 --steps N --codes N --sheet out.png]

From scratch the codes of a Gumbel VQGAN stay worse than the mean color for a long time. Here the model first learns
to copy images without codes; k-means on what its encoder says gives the code book; then encoder, decoder and book
learn together, gradients straight through the choice of the nearest entry (van den Oord et al., arXiv:1711.00937).
Shapes: B images, R image side, C channels of a code, N codes, h and w grid of codes.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from digits.handwriting import DigitSamples, load_digit_samples
from digits.legibility import legibility
from digits.scene import Scene, close_up, random_scene, render
from digits.words import DIGITS
from models.vqgan import VQGAN, Quantizer, VQGANConfig, to_pil
from utils.files import atomic_write

SIDE = 64  # of the scenes; 8 x 8 codes
CLOSE_UP = "one digit"  # fills the image
# What the batches hold in turn: what the images show, their side, the side of the part taken, how many.
KINDS = (
    ("scene", 64, 32, 16), (CLOSE_UP, 64, 32, 16), ("scene", 64, 32, 16),
    ("scene", 64, 64, 4), ("scene", 48, 48, 6), (CLOSE_UP, 64, 64, 4),
)  # fmt: skip
COPYING = 0.5  # part of the steps without codes
RATE = 1e-3
INK, INK_WEIGHT = -0.35, 3.0  # what is brighter than the canvas counts so much more: it is a twentieth of the pixels
COMMITMENT = 0.25  # weight of the encoder's distance to the book
VECTORS, ROUNDS = 60_000, 15  # of k-means
SCENES, CHECKED = 1500, 300  # drawn for training, of each size; reconstructed at the end
SHARPNESS = 8.0  # scores are minus the squared distances times this; only draws depend on it


def demo_config(codes: int) -> VQGANConfig:
    """Sizes of the demo's model: f = 8 as released, narrow."""
    return VQGANConfig(
        ch=16, ch_mult=(1, 1, 2, 4), num_res_blocks=1, attn_resolutions=(), resolution=SIDE, z_channels=32,
        embed_dim=32, n_embed=codes,
    )  # fmt: skip


class Pool:
    """Scenes of one to three digits, and of one that fills them, from which batches are cut.

    Args:
        count: scenes of each size. split: whose handwriting they show.
    """

    def __init__(self, split: str, count: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        samples = load_digit_samples(split)
        self.scenes = {
            (kind, side): torch.stack([pixels(draw(samples, self.rng, kind, side, i)) for i in range(count)])
            for kind, side in sorted({kind[:2] for kind in KINDS})
        }  # (count, 3, R, R) uint8

    def batch(self, kind: str, side: int, shown: int, size: int) -> Tensor:
        """(size, 3, shown, shown) in [-1, 1]: parts of scenes of `side` pixels, most of them with something on them."""
        scenes = self.scenes[kind, side]
        chosen = self.rng.integers(len(scenes), size=size)
        corners = self.rng.integers(side - shown + 1, size=(4, size, 2))
        parts = []
        for number, image in enumerate(scenes[chosen]):
            cuts = [image[:, y : y + shown, x : x + shown] for y, x in corners[:, number]]
            parts.append(max(cuts, key=lambda cut: int((cut > 100).sum())) if number % 4 and shown < side else cuts[0])
        return torch.stack(parts).float() / 127.5 - 1


def draw(samples: DigitSamples, rng: np.random.Generator, kind: str, side: int, number: int) -> Scene:
    """A random scene; digits, or their count, come in turn."""
    if kind == CLOSE_UP:
        return close_up(samples, rng, side, number % len(DIGITS))
    return random_scene(samples, rng, side, 1 + number % 3)


def pixels(scene: Scene) -> Tensor:
    """(3, R, R) uint8."""
    return torch.from_numpy(np.array(render(scene))).permute(2, 0, 1)


def distance(copies: Tensor, images: Tensor) -> Tensor:
    """Mean of L1 and L2 with more weight on ink."""
    weight = 1 + INK_WEIGHT * (images.amax(dim=1, keepdim=True) > INK)
    error = (copies - images).abs()
    return (weight * (error + error.square())).mean()


@torch.no_grad()
def score_by_distance(quantizer: Quantizer) -> None:
    """Sets the scores to -|z - e|^2 + |z|^2, times a factor: the highest is the nearest entry's."""
    book = quantizer.embed.weight
    weight, bias = 2 * SHARPNESS * book[:, :, None, None], -SHARPNESS * book.square().sum(dim=1)
    quantizer.proj.load_state_dict({"weight": weight, "bias": bias})


@torch.no_grad()
def start_book(model: VQGAN, pool: Pool) -> None:
    """Fills the code book from the encoder's output, which is brought to unit variance first."""
    vectors: list[Tensor] = []
    while sum(len(part) for part in vectors) < VECTORS:
        for kind in KINDS:
            vectors.append(model.quant_conv(model.encoder(pool.batch(*kind))).permute(0, 2, 3, 1).flatten(0, 2))
    entries = torch.cat(vectors)[:VECTORS]
    scale = entries.std()
    for weight in model.quant_conv.parameters():
        weight.div_(scale)
    model.post_quant_conv.weight.mul_(scale)
    seed = int(torch.randint(2**31, ()))
    centers = KMeans(model.config.n_embed, n_init=1, max_iter=ROUNDS, random_state=seed).fit((entries / scale).numpy())
    model.quantize.embed.weight.copy_(torch.from_numpy(centers.cluster_centers_))
    score_by_distance(model.quantize)


def quantised_loss(model: VQGAN, images: Tensor) -> Tensor:
    """Distance of the reconstruction plus that of encoder and book to each other."""
    z = model.quant_conv(model.encoder(images))  # (B, C, h, w)
    codes = model.quantize.proj(z).argmax(dim=1)
    entries = model.quantize.embed(codes).permute(0, 3, 1, 2)
    copies = model.decoder(model.post_quant_conv(z + (entries - z).detach()))
    book = (entries - z.detach()).square().mean() + COMMITMENT * (z - entries.detach()).square().mean()
    return distance(copies, images) + book


def copying_loss(model: VQGAN, images: Tensor) -> Tensor:
    """Squared distance of the reconstruction without codes: at first L1 would be content with a dark canvas."""
    copies = model.decoder(model.post_quant_conv(model.quant_conv(model.encoder(images))))
    return (copies - images).square().mean()


def fit(model: VQGAN, pool: Pool, steps: int) -> None:
    """Both parts of the training."""
    start, copying = time.time(), round(COPYING * steps)
    trained = [p for name, p in model.named_parameters() if not name.startswith("quantize.proj")]
    optimizer = torch.optim.Adam(trained, RATE, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    recent = []
    for step in range(steps):
        if step == copying:
            start_book(model, pool)
        loss = (copying_loss if step < copying else quantised_loss)(model, pool.batch(*KINDS[step % len(KINDS)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= copying:
            score_by_distance(model.quantize)
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            what = f"step {step + 1}/{steps} {'copying' if step < copying else 'codes'}"
            print(f"{what}: loss {np.mean(recent):.4f}, {time.time() - start:.0f} s", flush=True)
            recent = []


@torch.no_grad()
def report(model: VQGAN, seed: int, sheet: Path | None) -> None:
    """Prints how good reconstructions of unseen handwriting are; draws some below their originals."""
    rng, samples = np.random.default_rng([seed, 1]), load_digit_samples("test")
    scenes = [random_scene(samples, rng, SIDE) for _ in range(CHECKED)]
    specs = [scene.specs[0] for scene in scenes]
    images = torch.stack([pixels(scene) for scene in scenes]).float() / 127.5 - 1
    codes = torch.cat([model.encode(part) for part in images.split(20)])
    copies = torch.cat([model.decode(part) for part in codes.split(20)]).clamp(-1, 1)
    for name, shown in (("originals", images), ("reconstructions", copies)):
        found = legibility(to_pil(shown), specs)
        print(f"{name}: {found.digit:.3f} of the digits and {found.colour:.3f} of the colors are read")
    if sheet:
        rows = [part for group in zip(images[:48].split(12), copies[:48].split(12), strict=True) for part in group]
        (drawn,) = to_pil(torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)[None])
        with atomic_write(sheet) as file:
            drawn.save(file, format="PNG")
    plain = (images - images.mean(dim=(0, 2, 3), keepdim=True)).abs().mean()
    error = (copies - images).abs().mean()
    print(f"L1 {error:.4f}, of the mean color {plain:.4f}; {len(codes.unique())} of {model.config.n_embed} codes used")


def main() -> None:
    """Trains, reports and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="file to write, as the released last.ckpt")
    parser.add_argument("config", type=Path, help="file to write, as the released model.yaml")
    parser.add_argument("--steps", type=int, default=6000, help="batches (default %(default)s)")
    parser.add_argument("--codes", type=int, default=1024, help="entries of the code book (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="same seed and threads, same file (default %(default)s)")
    parser.add_argument("--sheet", type=Path, help="PNG to write: originals above reconstructions")
    args = parser.parse_args()
    if min(args.steps, args.codes) < 2 or args.seed < 0:
        parser.error("--steps and --codes must be 2 or more and --seed not negative")
    torch.manual_seed(args.seed)
    model = VQGAN(demo_config(args.codes))
    fit(model, Pool("train", SCENES, args.seed), args.steps)
    model.eval().save(args.checkpoint, args.config)
    report(model, args.seed, args.sheet)


if __name__ == "__main__":
    main()
