"""From what was generated or ranked to a task's answer: evaluation (`tasks/`) and the predictor call the same function.

A model's four location tokens become a box in `data/refcoco.py: predicted_boxes`, image codes an image in
`models/text_to_image.py: Painter.draw`.
"""

from collections.abc import Sequence
from dataclasses import replace

from data.refcoco import location_range
from data.text import Vocabulary
from metrics.summary_text import clean_summary
from models.generation import GenerationConfig, Hypothesis, Ranking
from utils.punctuation import remove_punctuation


def free_text(hypothesis: Hypothesis, vocab: Vocabulary, given: int = 0) -> str:
    """An answer to a question or an instruction, without its first `given` tokens, which the decoder was fed."""
    return vocab.written(hypothesis.tokens[given:]).strip()


def caption_text(hypothesis: Hypothesis, vocab: Vocabulary) -> str:
    """A caption, without punctuation."""
    return remove_punctuation(vocab.written(hypothesis.tokens)).strip()


def summary_text(hypothesis: Hypothesis, vocab: Vocabulary, validation: bool = False) -> str:
    """A summary in the tokenization of the dataset; `validation` as in `metrics.summary_text.clean_summary`."""
    return clean_summary(vocab.written(hypothesis.tokens), validation)


def ranked_names(ranking: Ranking, names: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Candidates of each sample with their probabilities, best first.

    Args:
        ranking: with K candidates of each of B samples. names: the candidates, in the order of the trie.

    Returns:
        B lists of K pairs.
    """
    best = zip(ranking.indices.tolist(), ranking.probabilities.tolist(), strict=True)
    return [[(names[i], probability) for i, probability in zip(*row, strict=True)] for row in best]


def box_options(config: GenerationConfig, vocab: Vocabulary) -> GenerationConfig:
    """The options, with outputs of exactly four location tokens: a box."""
    bins = config.constraint_range or location_range(vocab)
    return replace(config, min_len=4, max_len_a=0.0, max_len_b=4, constraint_range=bins)
