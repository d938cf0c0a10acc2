"""Image captioning."""

import random

from data.base import DataConfig, OFADataset
from data.images import image_file
from data.prompts import prompt
from data.row_index import Row, Rows
from data.sample import Example
from data.tasks import TASKS
from data.text import Vocabulary
from utils.constants import SEPARATOR
from utils.punctuation import remove_punctuation


def split_captions(text: str) -> list[str]:
    """All captions of an image, without punctuation."""
    return [remove_punctuation(caption).strip() for caption in " ".join(text.split()).split(SEPARATOR)]


class CaptionDataset(OFADataset):
    """Rows of id, base64 image and caption, or captions joined by `&&`.

    Training shortens the caption to `max_tgt_length` words. Evaluation, and training with `scst`, keeps all
    captions: joined in the target, and one by one as references. The split "check" reads each row as what it seems to
    be: one caption as training does, several as evaluation.
    """

    columns = TASKS["caption"].names
    left_out = 1

    def __init__(
        self,
        rows: Rows,
        vocab: Vocabulary,
        config: DataConfig,
        split: str,
        seed: int = 1,
        epoch: int = 1,
        scst: bool = False,
    ) -> None:
        super().__init__(rows, vocab, config, split, seed, epoch)
        self.prompt = prompt("caption", vocab.bpe)
        self.one_caption = split == "train" and not scst

    def example(self, row: Row, rng: random.Random) -> Example:
        """One caption to learn, or all captions to compare with."""
        uniq_id, image, caption = row
        if self.lacks_reference(caption):
            return Example(uniq_id, self.prompt, "", image_file(image), [], learn=False)
        references = None
        if self.one_caption or (self.split == "check" and SEPARATOR not in caption):
            words = remove_punctuation(caption).split()
            target = " ".join(words[: self.config.max_tgt_length])
            self.check_words(target, "caption")
        else:
            references = split_captions(caption)
            target = SEPARATOR.join(references)
            self.check_words(target, "caption")
        return Example(uniq_id, self.prompt, " " + target, image_file(image), references)
