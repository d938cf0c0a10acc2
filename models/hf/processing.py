"""Text and images -> the model's inputs: tokenizer, image processor, and both in one."""

import logging
import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import BatchFeature, ProcessorMixin, RobertaTokenizerFast
from transformers.image_processing_utils import BaseImageProcessor

from data.images import HALF, decode, normalisation, standard_transform, to_rgb, turned
from utils.files import read_file

logger = logging.getLogger(__name__)

# Side of the images where a folder says nothing: that of pretraining.
IMAGE_SIZE = 384


class OFATokenizer(RobertaTokenizerFast):
    """BART's byte-level BPE (vocab.json, merges.txt), then image codes and location bins, each one token.

    Ids are those of `data.text.Vocabulary`. A word counts as a word with the blank before it, so prompts begin with
    one: " what does the image describe?". Blanks around codes and bins belong to them and vanish.

    A folder whose dictionary lacks some of GPT-2's tokens has them in tokenizer.json, behind all others, because merges
    need them; in a text they are unknown.

    Args:
        code_dict_size: number of tokens <code_0> ... num_bins: number of tokens <bin_0> ...

    Raises:
        ValueError: no vocabulary, as of a folder without tokenizer files.
    """

    model_input_names = ["input_ids"]

    def __init__(self, *args: Any, code_dict_size: int = 8192, num_bins: int = 1000, **kwargs: Any) -> None:
        if not args and not kwargs.get("vocab"):
            raise ValueError("OFATokenizer needs vocab.json and merges.txt, or tokenizer.json: the folder has neither.")
        super().__init__(*args, code_dict_size=code_dict_size, num_bins=num_bins, **kwargs)
        names = [f"<code_{number}>" for number in range(code_dict_size)]
        names += [f"<bin_{number}>" for number in range(num_bins)]
        self.add_tokens([AddedToken(name, lstrip=True, rstrip=True, normalized=False) for name in names])
        behind = max(self.convert_tokens_to_ids(name) for name in ["<mask>", *names[-1:]])
        own = self.backend_tokenizer.get_vocab(with_added_tokens=False).values()
        self._unknown = {number for number in own if number > behind}

    def __len__(self) -> int:
        return super().__len__() - len(self._unknown)

    def _convert_encoding(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`; tokens that the model does not have become <unk>."""
        content, encodings = super()._convert_encoding(*args, **kwargs)
        if self._unknown:
            rows = content["input_ids"]
            content["input_ids"] = [[self.unk_token_id if n in self._unknown else n for n in row] for row in rows]
        return content, encodings

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> tuple[str, ...]:
        """As in `transformers`, and vocab.json and merges.txt of the layout; returns the files' names."""
        files = super().save_pretrained(save_directory, **kwargs)
        return (*files, *self.backend_tokenizer.model.save(str(save_directory)))


class OFAImageProcessor(BaseImageProcessor):
    """Images -> patch_images (B, 3, R, R): bicubic resize, normalized; pixel-identical to `data.images`.

    Args:
        size: {"height": R, "width": R}, or R. image_mean, image_std: 0.5 each, or ImageNet's.
    """

    model_input_names = ["patch_images"]

    def __init__(
        self,
        size: dict[str, int] | int | None = None,
        image_mean: tuple[float, ...] | None = None,
        image_std: tuple[float, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sides = {"height": size, "width": size} if isinstance(size, int) else dict(size or {})
        self.size = {name: sides.get(name, IMAGE_SIZE) for name in ("height", "width")}
        self.image_mean, self.image_std = list(image_mean or HALF), list(image_std or HALF)
        self._transform()

    @classmethod
    def get_image_processor_dict(cls, name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in `transformers`, but the published folders have no such file: then the defaults."""
        try:
            return super().get_image_processor_dict(name_or_path, **kwargs)
        except OSError:
            side = kwargs.get("size", IMAGE_SIZE)
            logger.warning("%s has no preprocessor_config.json: images are resized to %s.", name_or_path, side)
            return {}, kwargs

    def _transform(self) -> Any:
        given = (tuple(self.image_mean), tuple(self.image_std))
        if given not in map(normalisation, (False, True)) or self.size["height"] != self.size["width"]:
            raise ValueError(f"OFA takes square images, normalized by 0.5 or as ImageNet, not {self.size}, {given}.")
        return standard_transform(self.size["height"], imagenet_mean_std=given == normalisation(True))

    def _image(self, image: Any) -> Image.Image:
        """RGB image, upright and on white as `models.predictor` has it."""
        if isinstance(image, str) and os.path.isfile(image):
            return decode(read_file(image), upright=True, on_white=True).image
        if not isinstance(image, Image.Image):
            found = self.fetch_images(image)  # URLs
            image = found if isinstance(found, Image.Image) else Image.fromarray(np.asarray(found))
        image.load()
        return to_rgb(turned(image), on_white=True)

    def preprocess(self, images: Any, return_tensors: Any = "pt", **unused: Any) -> BatchFeature:
        """Images, one or a list: PIL, arrays (H, W, 3) of bytes, paths or URLs. -> patch_images (B, 3, R, R)."""
        given = list(images) if isinstance(images, list | tuple) else [images]
        opened = [self._image(image) for image in given]
        transform = self._transform()
        pixels = torch.stack([transform(image) for image in opened])
        return BatchFeature({"patch_images": pixels}, tensor_type=return_tensors)


class OFAProcessor(ProcessorMixin):
    """Tokenizer and image processor in one: `processor(text=..., images=...)` -> input_ids, patch_images."""

    def __init__(self, image_processor: OFAImageProcessor, tokenizer: OFATokenizer) -> None:
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_pretrained(cls, name_or_path: Any, size: Any = None, **kwargs: Any) -> "OFAProcessor":
        """Reads a folder or hub name; size: side of the images instead of the folder's."""
        sides = {} if size is None else {"size": size}
        return cls(
            OFAImageProcessor.from_pretrained(name_or_path, **sides, **kwargs),
            OFATokenizer.from_pretrained(name_or_path, **kwargs),
        )

    def __call__(self, text: Any = None, images: Any = None, return_tensors: Any = "pt", **kwargs: Any) -> BatchFeature:
        """Texts, one or a list, and as many images -> input_ids (B, L) padded on the right, patch_images.

        kwargs: as a tokenizer takes them (`truncation`, `max_length`).
        """
        if text is None and images is None:
            raise ValueError("Pass text, images, or both.")
        content: dict[str, Any] = {}
        if text is not None:
            content.update(self.tokenizer(text, return_tensors=return_tensors, **{"padding": True, **kwargs}))
        if images is not None:
            content.update(self.image_processor(images, return_tensors=return_tensors))
        return BatchFeature(content)
