"""Teaches the demo's image trunk digits and colors, as users start from a trunk that knows ImageNet.

    python -m digits.train_trunk OUT.pt [--updates N --image-size PX]

Inside the whole model a trunk from scratch stays blind to shapes for thousands of updates: what a digit looks like
reaches the caption through one of seventeen attended positions. Here every cell of scenes of one to nine digits says
what is in it. Writes the state dict that `--resnet-model-path` reads.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data.images import standard_transform
from digits.handwriting import DigitSamples, load_digit_samples
from digits.scene import random_scene, render
from digits.words import COLOURS, DIGITS, GRID, POSITIONS
from models.ofa import OFAConfig
from models.ofa.resnet import ResNet
from utils.files import atomic_write

BATCH, RATE, WEIGHT_DECAY = 32, 1e-3, 0.01
CELLS, COLOR_NAMES = list(POSITIONS), list(COLOURS)
NOTHING = -1


def main() -> None:
    """Trains on scenes of the training handwriting, drawn on the way; reads scenes of the validation handwriting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="state dict to write")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--image-size", type=int, default=48)
    args = parser.parse_args()
    torch.manual_seed(1)
    rng, samples = np.random.default_rng(1), load_digit_samples("train")
    trunk = ResNet(OFAConfig.from_arch("ofa_demo"))
    head = nn.Linear(trunk.channels, len(DIGITS) + len(COLOURS) + 1)
    optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=args.updates, pct_start=0.1)
    for _ in tqdm(range(args.updates), desc="image trunk", mininterval=0.5 if sys.stderr.isatty() else 20):
        images, digits, shades = draw(samples, rng, BATCH, args.image_size)
        of_digit, of_shade, presence = read(trunk, head, images)
        seen = digits != NOTHING
        loss = F.cross_entropy(of_digit[seen], digits[seen]) + F.cross_entropy(of_shade[seen], shades[seen])
        loss = loss + F.binary_cross_entropy_with_logits(presence, seen.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with atomic_write(args.out) as file:
        torch.save(trunk.state_dict(), file)
    trunk.eval()
    images, digits, _ = draw(load_digit_samples("val"), rng, 10 * BATCH, args.image_size)
    with torch.no_grad():
        right = (read(trunk, head, images)[0].argmax(-1) == digits)[digits != NOTHING].float().mean().item()
    print(f"{args.out}: loss {loss.item():.3f} after {args.updates} updates, reads {right:.1%} of unseen digits")


def draw(samples: DigitSamples, rng: np.random.Generator, count: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scenes as images (count, 3, side, side); digit and color of each cell (count, 9), NOTHING if it is empty."""
    transform = standard_transform(side)
    scenes = [random_scene(samples, rng, side, int(rng.integers(1, len(CELLS) + 1))) for _ in range(count)]
    digits, shades = torch.full((2, count, len(CELLS)), NOTHING)
    for number, scene in enumerate(scenes):
        for spec in scene.specs:
            cell = CELLS.index(spec.position)
            digits[number, cell], shades[number, cell] = DIGITS.index(spec.digit), COLOR_NAMES.index(spec.colour)
    return torch.stack([transform(render(scene)) for scene in scenes]), digits, shades


def read(trunk: nn.Module, head: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of digits (B, 9, 10), of colors (B, 9, colors) and of there being something (B, 9), cell by cell."""
    cells = F.adaptive_avg_pool2d(trunk(images), GRID).flatten(2).transpose(1, 2)
    of_digit, of_shade, presence = head(cells).split([len(DIGITS), len(COLOURS), 1], dim=-1)
    return of_digit, of_shade, presence.squeeze(-1)


if __name__ == "__main__":
    main()
