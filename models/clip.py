"""CLIP (Radford et al., 2021, arXiv:2103.00020): how well images and texts go together.

The model is open_clip's, the weights OpenAI's `ViT-B-16.pt`, of which only tensors are read; both are needed
only when `CLIP.load` is called.
Shapes: N images, M texts, C joint dimension (512 for ViT-B/16).
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.images import to_rgb
from models.unset_weights import UnsetWeights
from utils.checkpoint import check_state, check_whole, unpickle
from utils.errors import UserError
from utils.torchscript import is_torchscript, read_torchscript

logger = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What is used of open_clip's tokenizer: rows start, ids, end, zeros; and the ids alone."""

    def __call__(self, texts: list[str], context_length: int) -> Tensor: ...

    def encode(self, text: str) -> list[int]: ...


class Ranking(NamedTuple):
    """Images by descending similarity."""

    indices: Tensor  # (N,), int64: numbers of the images, best first
    scores: Tensor  # (N,), float32: their cosines


class CLIP:
    """Cosine similarity of images and texts.

    Args:
        model: open_clip's `CLIP`, in eval mode; its options come from the shapes of the weights.
        tokenizer: of the model's vocabulary.
        batch_size: images or texts at once.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, batch_size: int = 64) -> None:
        from torchvision.transforms import v2  # seconds to import, and few runs need CLIP

        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.dtype, self.device = model.visual.conv1.weight.dtype, model.visual.conv1.weight.device
        self.context_length = int(model.context_length)
        size = int(model.visual.image_size[0])
        self._resize = v2.Compose([v2.Resize(size, v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)])
        self._warned = False

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu", batch_size: int = 64) -> "CLIP":
        """Reads tensors of OpenAI's file (TorchScript) or a plain state dict; float32 on the CPU, else float16.

        Raises:
            UserError: open_clip or the file is missing, or the file is no CLIP model.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"There is no CLIP file {path}: put OpenAI's ViT-B-16.pt there, or name it with --clip-model-path."
            )
        try:
            import open_clip
        except ImportError as error:
            raise UserError("CLIP scores need the package open_clip: pip install open_clip_torch.") from error
        precision = "fp32" if torch.device(device).type == "cpu" else "fp16"
        state = _read_weights(path)
        try:
            cast = open_clip.get_cast_dtype(precision)
            with UnsetWeights():
                model = open_clip.model.build_model_from_openai_state_dict(state, cast_dtype=cast)
        except Exception as error:  # it raises many types on weights of another model
            raise UserError(f"{path} is not a CLIP model: put OpenAI's ViT-B-16.pt there.") from error
        model = model.to(device) if precision == "fp16" else model.to(device).float()
        return cls(model.requires_grad_(False).eval(), open_clip.SimpleTokenizer(), batch_size)

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Features (N, C) of images of any size and mode, float32, of length 1."""
        parts = []
        for first in range(0, len(images), self.batch_size):
            batch = torch.stack([self.preprocess(image) for image in images[first : first + self.batch_size]])
            parts.append(self._unit(self.model.encode_image(batch.to(self.device, self.dtype))))
        return torch.cat(parts)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Features (M, C) of texts, float32, of length 1; what is beyond 77 tokens is cut off, with one warning."""
        ids = self.tokenize(texts)
        parts = [self._unit(self.model.encode_text(part.to(self.device))) for part in ids.split(self.batch_size)]
        return torch.cat(parts)

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Cosines (N, M), float32, on the CPU."""
        return (self.image_features(images) @ self.text_features(texts).T).cpu()

    def image_similarity(self, images: Sequence[Image.Image], references: Sequence[Image.Image]) -> Tensor:
        """Cosines (N, M) of images with M other images, float32, on the CPU."""
        return (self.image_features(images) @ self.image_features(references).T).cpu()

    def rerank(self, images: Sequence[Image.Image], target: str | Image.Image) -> Ranking:
        """The images by their similarity to one text or one reference image; equal ones keep their order."""
        scores = (
            self.similarity(images, [target]) if isinstance(target, str) else self.image_similarity(images, [target])
        )
        ordered = scores[:, 0].sort(descending=True, stable=True)
        return Ranking(ordered.indices, ordered.values)

    def preprocess(self, image: Image.Image) -> Tensor:
        """(3, R, R) normalized pixels, R = 224: short side resized (bicubic), the center, RGB.

        ValueError for an image of no known range of values.
        """
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        from torchvision.transforms.v2 import functional

        pixels = functional.pil_to_tensor(to_rgb(self._resize(image))).float() / 255
        return functional.normalize(pixels, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids (M, 77): start, text, end, zeros; the end of a cut text is the end id."""
        ids = self.tokenizer(list(texts), self.context_length)
        if not self._warned:
            for text, full in zip(texts, ids[:, -1] != 0, strict=True):
                if full and len(self.tokenizer.encode(text)) > self.context_length - 2:
                    logger.warning("CLIP reads %d tokens; longer texts are cut, such as: %s", self.context_length, text)
                    self._warned = True
                    break
        return ids

    @staticmethod
    def _unit(features: Tensor) -> Tensor:
        return F.normalize(features.float(), dim=-1)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """A CLIP file's state dict: of OpenAI's TorchScript archive without running its code, or plain.

    Raises:
        UserError: another or a damaged file, or one that asks for code to be run.
    """
    check_whole(path)
    try:
        content: Any = read_torchscript(path) if is_torchscript(path) else unpickle(path)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} is not a CLIP model ({error!s:.200}): put OpenAI's ViT-B-16.pt there.") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):  # of a training run in parallel
        content = {str(name).removeprefix("module."): value for name, value in content["state_dict"].items()}
    check_state(content, str(path))
    return content
