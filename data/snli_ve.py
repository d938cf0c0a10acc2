"""Visual entailment: does an image, with or without its caption, prove a sentence?"""

import random
from dataclasses import dataclass, field
from typing import Optional

from data.answers import AnswerConfig, check_prompt_type
from data.base import OFADataset
from data.images import image_file
from data.prompts import prompt
from data.row_index import Row, Rows
from data.sample import Example
from data.tasks import TASKS
from data.text import Vocabulary, normalize_caption
from utils.errors import quoted

WORDS = {"contradiction": "no", "entailment": "yes", "neutral": "maybe"}  # label in the file -> answer


@dataclass
class SnliVeData(AnswerConfig):
    """Options of the rows of visual entailment."""

    ans2label_dict: Optional[str] = field(
        default='{"no": 0, "yes":1, "maybe": 2}', metadata={"help": "the answers, as the keys of a JSON object"}
    )
    add_caption: bool = field(default=False, metadata={"help": "the caption is a premise besides the image"})


def source_text(hypothesis: str, caption: str | None, config: SnliVeData, bpe: str) -> str:
    """What the encoder reads: the sentence to judge and, unless None, the caption it is judged by."""
    hypothesis = normalize_caption(hypothesis, config.max_src_length)
    if caption is None:
        return prompt("snli_ve", bpe).format(hypothesis=hypothesis)
    caption = normalize_caption(caption, config.max_src_length)
    return prompt("snli_ve caption", bpe).format(caption=caption, hypothesis=hypothesis)


class SnliVeDataset(OFADataset):
    """Rows of id, image, hypothesis, caption and label."""

    columns = TASKS["snli_ve"].names
    left_out = 1
    config: SnliVeData

    def __init__(
        self, rows: Rows, vocab: Vocabulary, config: SnliVeData, split: str, seed: int = 1, epoch: int = 1
    ) -> None:
        super().__init__(rows, vocab, config, split, seed, epoch)
        self.prompt_type = check_prompt_type(config.prompt_type)

    def example(self, row: Row, rng: random.Random) -> Example:
        """A sentence to judge, and yes, no or maybe."""
        uniq_id, image, hypothesis, caption, label = row
        known = not self.lacks_reference(label)
        if known and label not in WORDS:
            raise ValueError(f"the label {quoted(label)} is not one of {', '.join(WORDS)}")
        self.check_words(hypothesis, "sentence")
        return Example(
            uniq_id,
            source_text(hypothesis, caption if self.config.add_caption else None, self.config, self.vocab.bpe),
            f" {WORDS[label]}" if known else "",
            image_file(image),
            prompt_type=self.prompt_type,
            learn=known,
            extras={"ref_dict": {WORDS[label]: 1.0} if known else {}},
        )
