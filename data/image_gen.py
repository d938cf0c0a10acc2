"""Text-to-image generation: a prompt and the codes of the image it describes."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from data.base import DataConfig, OFADataset
from data.prompts import prompt
from data.row_index import Row, Rows
from data.sample import Batch, Example, Sample, SkippedRow
from data.tasks import TASKS
from data.text import Vocabulary, require_words
from data.tsv import plain_number
from utils.errors import quoted

CODE_SIDE = 8  # pixels that a code stands for
COLUMNS: tuple[tuple[str, ...], ...] = (("id", "text"), TASKS["image_gen"].names, ("id", "image", "text", "codes"))


@dataclass
class ImageGenData(DataConfig):
    """Options of the rows of text-to-image generation."""

    code_image_size: int = field(
        default=256, metadata={"help": "side of the images that image codes describe (pixels); 8 pixels make a code"}
    )


def code_count(code_image_size: int) -> int:
    """Codes of an image: a square grid with one for 8 x 8 pixels."""
    return (code_image_size // CODE_SIDE) ** 2


def code_ids(column: str, code_image_size: int, vocab: Vocabulary) -> list[int]:
    """Ids of the codes in a column, numbers with blanks between them, row by row of the grid.

    Raises:
        ValueError: other text, a number of codes that the image does not have, or a code that does not exist.
    """
    try:
        codes = [int(code) for code in plain_number(column).split()]
    except ValueError as error:
        raise ValueError(f"the codes {quoted(column)} are not numbers separated by spaces") from error
    if len(codes) != (wanted := code_count(code_image_size)):
        raise ValueError(f"the row has {len(codes)} image codes, not {wanted}; see --code-image-size")
    return [vocab.code_id(code) for code in codes]


def drawn_text(text: str, max_words: int) -> str:
    """The first words of a text to draw; ValueError if it has none."""
    return require_words(" ".join(text.split()[:max_words]), "text")


class ImageGenDataset(OFADataset):
    """Rows of id, text and codes; of id and text alone, to draw; or with the true image, to compare with.

    Without codes the target is as many zeros. The batch has `captions`, the texts as the model reads them, and with
    images `code_images`, one RGB image each.
    """

    config: ImageGenData
    columns: tuple[str, ...] = TASKS["image_gen"].names

    def __init__(
        self, rows: Rows, vocab: Vocabulary, config: ImageGenData, split: str, seed: int = 1, epoch: int = 1
    ) -> None:
        selected = len(rows.columns or rows[0])
        self.columns = next((names for names in COLUMNS if len(names) == selected), self.columns)
        super().__init__(rows, vocab, config, split, seed, epoch)
        self.prompt = prompt("image_gen", vocab.bpe)

    def example(self, row: Row, rng: random.Random) -> Example:
        """The first `max_src_length` words of the text, and the codes."""
        column = dict(zip(self.columns, row, strict=True))
        caption = drawn_text(column["text"], self.config.max_src_length)
        size = self.config.code_image_size
        if "codes" in column:
            target = code_ids(column["codes"], size, self.vocab)
        else:
            target = [self.vocab.code_id(0)] * code_count(size)
        extras = {"code_masks": torch.tensor(True), "captions": caption}
        if "image" in column:
            extras["code_images"] = self.image(column["image"])
        return Example(column["id"], self.prompt.format(caption=caption), target, extras=extras)

    def collater(self, samples: Sequence[Sample | SkippedRow]) -> Batch:
        """As the base; `code_masks` tells the model that targets are codes."""
        batch = super().collater(samples)
        if "net_input" in batch:
            batch["net_input"]["code_masks"] = batch.pop("code_masks")  # type: ignore[typeddict-item]
        return batch
