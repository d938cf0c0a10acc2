"""FID (Heusel et al., 2017, arXiv:1706.08500) and Inception score (Salimans et al., 2016, arXiv:1606.03498).

Both use torchvision's Inception v3 with ImageNet weights, from a file; nothing is downloaded. The procedure is the one
behind the published figures and `gt_stat.npz`: [0, 1] images reach the model scaled as if they were
ImageNet-normalized (FID) or not at all (Inception score), and FID leaves out the last incomplete batch. Figures of
other programs, which use TensorFlow's Inception weights and scale to [-1, 1], are not comparable.

    python run_scripts/image_gen/fid_score.py --path1 FOLDER --path2 gt_stat.npz --gpu 0
    python run_scripts/image_gen/inception_score.py --path1 FOLDER --gpu 0
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from data.images import MAX_PIXELS, decode
from data.table_files import image_files
from utils.checkpoint import check_state, check_whole, unpickle
from utils.errors import UserError, one_sentence
from utils.files import atomic_write, read_file

SIDE = 299
WEIGHTS = "inception_v3_google-0cc3c7bd.pth"  # torchvision's name for the ImageNet weights
_READERS = 8  # threads that decode images
# Feature width -> the last layer run; the output is averaged over positions.
BLOCKS = {64: "maxpool1", 192: "maxpool2", 768: "Mixed_6e", 2048: "Mixed_7c"}
_LAYERS = (
    "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2 Mixed_5b Mixed_5c "
    "Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b Mixed_7c"
).split()


class Statistics(NamedTuple):
    """A Gaussian fitted to features, float64."""

    mu: np.ndarray  # (D,)
    sigma: np.ndarray  # (D, D), divisor n - 1


class Inception(nn.Module):
    """Inception v3: pooled features of one depth, or logits of the classes.

    Args:
        weights: torchvision's ImageNet file; None leaves random weights.
        dims: width of the features, one of `BLOCKS`.
    Raises:
        UserError: the file is missing or of another model.
    """

    def __init__(self, weights: Path | None = None, dims: int = 2048) -> None:
        from torchvision.models import inception_v3

        super().__init__()
        self.net = inception_v3(weights=None, init_weights=False, transform_input=False, aux_logits=True)
        if weights is not None:
            self.net.load_state_dict(_read_weights(weights, self.net))
        self.dims = dims
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, dims)."""
        images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=True)
        x = released_scaling(images)
        for name in _LAYERS[: _LAYERS.index(BLOCKS[self.dims]) + 1]:
            x = getattr(self.net, name)(x)
        return x.mean(dim=(2, 3))

    def probabilities(self, images: Tensor) -> Tensor:
        """(B, 3, 299, 299) in [0, 1] -> (B, 1000)."""
        return self.net(images).softmax(dim=1)


def released_scaling(images: Tensor) -> Tensor:
    """What would turn ImageNet-normalized pixels into [-1, 1], done by the original to pixels in [0, 1] instead."""
    mean = images.new_tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = images.new_tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    return images * (std / 0.5) + (mean - 0.5) / 0.5


def _read_weights(path: Path, net: nn.Module) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"There is no {path}: put torchvision's {WEIGHTS} there, or name it with --inception.")
    check_whole(path)
    state = unpickle(path)
    check_state(state, str(path))
    shapes = {name: tensor.shape for name, tensor in state.items()}
    if shapes != {name: tensor.shape for name, tensor in net.state_dict().items()}:
        raise UserError(f"{path} holds another model: name torchvision's {WEIGHTS}.")
    return state


def images_below(folder: Path) -> list[Path]:
    """All images below a folder, sorted; UserError if there are none."""
    files, _ = image_files(folder, recursive=True)
    if not files:
        raise UserError(f"{folder} has no images; name a folder of images.")
    return files


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """(3, 299, 299) in [0, 1]; resized (bilinear) without keeping the aspect ratio.

    UserError for a file that is no image, is cut off, or has more than `max_pixels` pixels.
    """
    try:
        decoded = decode(read_file(path), max_pixels)
        if decoded.damaged:
            raise ValueError("it is cut off or damaged")
        if 0 in decoded.image.size:
            raise ValueError("it has no pixels")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): remove it or make it again.") from error
    square = decoded.image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255


def batches(files: Sequence[Path], batch_size: int) -> Iterator[Tensor]:
    """Images (B, 3, 299, 299) of the files in order; the last batch may be short."""
    with ThreadPoolExecutor(_READERS) as pool:
        for first in tqdm(range(0, len(files), batch_size), unit="batch"):
            yield torch.stack(list(pool.map(read_image, files[first : first + batch_size])))


def released_selection(files: Sequence[Path], batch_size: int) -> tuple[Sequence[Path], int]:
    """The files and the batch size that the original computes FID with: whole batches only."""
    if len(files) < batch_size:
        return files, 1
    return files[: len(files) // batch_size * batch_size], batch_size


@torch.no_grad()
def folder_statistics(folder: Path, net: Inception, device: torch.device, batch_size: int) -> Statistics:
    """Features of the images below a folder, summed up; UserError for fewer than two."""
    files, batch_size = released_selection(images_below(folder), batch_size)
    parts = [net.features(batch.to(device)).cpu() for batch in batches(files, batch_size)]
    return statistics(torch.cat(parts).double().numpy())


def statistics(features: np.ndarray) -> Statistics:
    """Mean and unbiased covariance of features (n, D); UserError for fewer than two rows."""
    if len(features) < 2:
        raise UserError("FID needs at least two images, and thousands to be meaningful.")
    return Statistics(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """|mu1 - mu2|^2 + Tr(S1) + Tr(S2) - 2 Tr((S1 S2)^(1/2)).

    Where the root is not finite, 1e-6 is added to both diagonals.

    Raises:
        UserError: statistics of different width, or a root with an imaginary diagonal above 1e-3.
    """
    if first.mu.shape != second.mu.shape or first.sigma.shape != second.sigma.shape:
        raise UserError(
            f"The statistics have {first.mu.size} and {second.mu.size} features: compute both with the same --dims."
        )
    root = _root(first.sigma @ second.sigma)
    if not np.isfinite(root).all():
        offset = np.eye(len(first.sigma)) * 1e-6
        root = _root((first.sigma + offset) @ (second.sigma + offset))
    largest = np.abs(np.diagonal(root).imag).max()
    if not largest <= 1e-3:
        raise UserError(f"The root of the covariances is not real (imaginary part {largest:.3g}): use more images.")
    difference = first.mu - second.mu
    trace = np.trace(first.sigma) + np.trace(second.sigma) - 2 * np.trace(root.real)
    return float(difference @ difference + trace)


def _root(product: np.ndarray) -> np.ndarray:
    """Matrix square root, possibly complex or not finite; the caller judges what scipy would warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(scipy.linalg.sqrtm(product))


def inception_score(probabilities: np.ndarray, splits: int = 1) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))), in nats: mean and standard deviation over `splits` equal parts.

    Args:
        probabilities: (n, classes), rows sum to 1; a remainder of n / splits is left out.
    """
    size = len(probabilities) // splits
    if size == 0:
        raise UserError(f"{len(probabilities)} images cannot be split into {splits} parts: use fewer --splits.")
    scores = []
    for part in probabilities[: size * splits].reshape(splits, size, -1).astype(np.float64):
        marginal = part.mean(axis=0, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(part > 0, part * np.log(part / marginal), 0.0)
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def read_statistics(path: Path) -> Statistics:
    """`mu` and `sigma` of an .npz file; nothing in it is executed. UserError if they are missing or do not fit."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except Exception as error:  # numpy and zipfile raise many types on damaged files
        raise UserError(f"{path} has no arrays mu and sigma: write it with --save-stats.") from error
    if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
        raise UserError(f"{path} has mu {mu.shape} and sigma {sigma.shape}, which do not fit: write it again.")
    return Statistics(mu, sigma)


def write_statistics(stats: Statistics, path: Path) -> None:
    """An .npz file with `mu` and `sigma`, whole or not at all."""
    with atomic_write(path) as file:
        np.savez(file, mu=stats.mu, sigma=stats.sigma)


def default_weights() -> Path:
    """Where torchvision keeps the ImageNet weights that it has downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--path1", type=Path, required=True, help="folder of images")
    parser.add_argument("-c", "--gpu", default="", help="number of the GPU (default: the CPU)")
    parser.add_argument("--inception", type=Path, default=default_weights(), help="torchvision's ImageNet weights")
    parser.add_argument("--dims", type=int, default=2048, choices=sorted(BLOCKS), help="width of the features (FID)")
    return parser


def _device(gpu: str) -> torch.device:
    if gpu and not torch.cuda.is_available():
        raise UserError(f"--gpu {gpu}: there is no GPU here; leave it out to use the CPU.")
    return torch.device(f"cuda:{gpu}" if gpu else "cpu")


def fid_main(argv: Sequence[str] | None = None) -> int:
    """Print the FID of two folders or statistics files; 2 on a user's mistake."""
    parser = _parser("fid_score.py")
    parser.add_argument("--path2", type=Path, help="folder of images or .npz to compare with")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once; an incomplete batch is left out")
    parser.add_argument("--save-stats", type=Path, help="write the statistics of --path1 to this .npz")
    flags = parser.parse_args(argv)
    if flags.path2 is None and flags.save_stats is None:
        parser.error("--path2 or --save-stats is needed")
    try:
        device, net = _device(flags.gpu), None
        statistics = []
        for path in (flags.path1, flags.path2):
            if path is not None and path.suffix != ".npz":
                net = net or Inception(flags.inception, flags.dims).to(device)
                statistics.append(folder_statistics(path, net, device, flags.batch_size))
            elif path is not None:
                statistics.append(read_statistics(path))
        if flags.save_stats:
            write_statistics(statistics[0], flags.save_stats)
        if flags.path2 is not None:
            print("FID: ", frechet_distance(statistics[0], statistics[1]))
    except (UserError, OSError) as error:
        print(one_sentence(error), file=sys.stderr)
        return 2
    return 0


def inception_score_main(argv: Sequence[str] | None = None) -> int:
    """Print the Inception score of a folder; 2 on a user's mistake."""
    parser = _parser("inception_score.py")
    parser.add_argument("--batch-size", type=int, default=32, help="images at once")
    parser.add_argument("--splits", type=int, default=1, help="parts scored separately (released: 1, papers: 10)")
    flags = parser.parse_args(argv)
    try:
        device = _device(flags.gpu)
        net = Inception(flags.inception).to(device)
        with torch.no_grad():
            parts = [
                net.probabilities(part.to(device)).cpu()
                for part in batches(images_below(flags.path1), flags.batch_size)
            ]
        mean, std = inception_score(torch.cat(parts).numpy(), flags.splits)
    except (UserError, OSError) as error:
        print(one_sentence(error), file=sys.stderr)
        return 2
    print("IS mean: ", mean)
    print("IS std: ", std)
    return 0
