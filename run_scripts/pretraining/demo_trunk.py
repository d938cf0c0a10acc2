"""Teaches the demo's image trunk digits and colours, as users start from a trunk that knows ImageNet.

    python run_scripts/pretraining/demo_trunk.py CAPTION_TRAIN.tsv OUT.pt [--updates N --image-size PX]

Inside the whole network a trunk from scratch stays blind to shapes for thousands of updates: what a digit looks like
reaches the caption through one of seventeen attended positions. Writes the state dict that `--resnet-model-path` reads.
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data.demo.words import COLOURS, DIGITS
from data.images import decode_base64, decode_image, standard_transform
from data.tsv import TsvFile
from models.ofa import OFAConfig
from models.ofa.resnet import TRUNK_CHANNELS, ResNet
from utils.files import atomic_write

BATCH, RATE = 32, 1e-3


def main() -> None:
    """Trains on the object labels of the training pictures (columns 3 and 4)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="training file of the demo")
    parser.add_argument("out", type=Path, help="state dict to write")
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--image-size", type=int, default=48)
    args = parser.parse_args()
    torch.manual_seed(1)
    rows, rng = TsvFile(args.data, "3,4"), random.Random(1)
    colours, transform = list(COLOURS), standard_transform(args.image_size)
    trunk, head = ResNet(OFAConfig.from_arch("ofa_demo")), nn.Linear(TRUNK_CHANNELS, len(DIGITS) + len(colours))
    optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, args.updates)
    for _ in tqdm(range(args.updates), desc="image trunk", mininterval=0.5 if sys.stderr.isatty() else 20):
        batch = [rows[rng.randrange(len(rows))] for _ in range(BATCH)]
        names = [label.split(" ") for label, _ in batch]
        digits = torch.tensor([DIGITS.index(digit) for _, digit in names])
        shades = torch.tensor([colours.index(colour) for colour, _ in names])
        images = torch.stack([transform(decode_image(decode_base64(image))) for _, image in batch])
        logits = head(trunk(images).mean((2, 3)))  # (B, digits + colours)
        loss = F.cross_entropy(logits[:, : len(DIGITS)], digits) + F.cross_entropy(logits[:, len(DIGITS) :], shades)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with atomic_write(args.out) as file:
        torch.save(trunk.state_dict(), file)
    print(f"{args.out}: loss {loss.item():.3f} after {args.updates} updates")


if __name__ == "__main__":
    main()
