"""Summarization of news sentences."""

import random
from dataclasses import dataclass, field

import torch

from data.base import DataConfig, OFADataset
from data.prompts import prompt
from data.row_index import Row
from data.sample import Example
from data.tasks import TASKS
from data.text import normalize_caption

UNKNOWN = "<unk>"  # how the dataset writes rare words
DIGIT = "#"  # how the dataset writes digits
FIRST_TEXT_ID = 4  # the ids below are special


@dataclass
class GigawordData(DataConfig):
    """Options of the rows of summarization."""

    noise_ratio: float = field(
        default=0.0, metadata={"help": "share of the decoder's input tokens replaced by random ones"}
    )


def source_text(article: str, config: GigawordData, bpe: str) -> str:
    """What the encoder reads, to be cut to `max_src_length` tokens."""
    article = normalize_caption(article, config.max_src_length).replace(UNKNOWN, "unk")
    return prompt("gigaword", bpe).format(source=article)


class GigawordDataset(OFADataset):
    """Rows of article and summary; a part of what the decoder reads is noise, in every split."""

    columns = TASKS["gigaword"].names
    left_out = 1
    config: GigawordData

    def example(self, row: Row, rng: random.Random) -> Example:
        """An article and its summary, which unlike other targets has no blank in front."""
        article, summary = row
        text = normalize_caption(summary, self.config.max_tgt_length).replace(UNKNOWN, "unk")
        for words, what in ((normalize_caption(article), "article"), (text, "summary")):
            self.check_words(words.replace(DIGIT, "0"), what)
        target = self.vocab.encode(text)
        read = None
        if self.config.noise_ratio > 0:
            generator = torch.Generator().manual_seed(rng.getrandbits(63))
            read = add_noise(target, self.config.noise_ratio, self.vocab.code_start, generator)
        return Example(
            None,
            source_text(article, self.config, self.vocab.bpe),
            target,
            decoder_input=read,
            max_source_tokens=self.config.max_src_length,
            extras={"target_strs": summary.lower()},
        )


def add_noise(tokens: list[int], ratio: float, stop: int, generator: torch.Generator) -> list[int]:
    """Tokens of which each is, with probability `ratio`, another one of 4..stop-1."""
    noisy = torch.tensor(tokens, dtype=torch.long)
    hit = torch.empty(len(tokens)).uniform_(generator=generator) < ratio
    noisy[hit] = torch.randint(FIRST_TEXT_ID, stop, (int(hit.sum()),), generator=generator)
    return noisy.tolist()
