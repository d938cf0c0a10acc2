"""Image classification: the name of the class is generated."""

import random
from collections.abc import Collection
from dataclasses import dataclass

from data.answers import AnswerConfig
from data.augment import imagenet_train_transform, seeded
from data.base import OFADataset
from data.images import image_file
from data.prompts import prompt
from data.row_index import Row, Rows
from data.sample import Example
from data.tasks import TASKS
from data.text import Vocabulary
from utils.errors import quoted


@dataclass
class ImageClassifyData(AnswerConfig):
    """Options of the rows of image classification."""


class ImageClassifyDataset(OFADataset):
    """Rows of image and class name; the id is the number of the row. Training augments the images."""

    columns = TASKS["image_classify"].names
    left_out = 1

    def __init__(
        self,
        rows: Rows,
        vocab: Vocabulary,
        config: ImageClassifyData,
        split: str,
        seed: int = 1,
        epoch: int = 1,
        answers: Collection[str] = (),
    ) -> None:
        super().__init__(rows, vocab, config, split, seed, epoch)
        self.answers = frozenset(answers)
        # the released prompt is English whatever the encoding
        self.prompt = prompt("image_classify", "gpt2")
        self.augment = imagenet_train_transform(config.patch_image_size, config.imagenet_default_mean_and_std)

    def example(self, row: Row, rng: random.Random) -> Example:
        """An image, and the name of its class."""
        image, name = row
        labeled = not self.lacks_reference(name)
        known = labeled and (not self.answers or name in self.answers)
        if not known and self.split == "train":
            raise ValueError(f"the class {quoted(name)} is not in the answer set")
        if self.strict and not name.strip():
            raise ValueError("the class is empty")
        data = image_file(image)
        references = {name: 1.0} if labeled else {}
        example = Example(None, self.prompt, " " + name, data, learn=known, extras={"ref_dict": references})
        if self.split == "train":
            with seeded(rng):
                example.image = self.augment(self._decode(data))
        return example
