"""ROUGE of summaries, through Google's rouge-score with Porter stemming (Lin, 2004)."""

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import parse_json, read_text

TYPES = ("rouge1", "rouge2", "rougeL")
SEED = 0  # of the resampling


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # pulls in nltk: two seconds that other tasks need not wait

    return RougeScorer(TYPES, use_stemmer=True)


def rouge_sums(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Sums of 100 x recall and 100 x F1 over summaries, each with the number of summaries.

    Returns:
        rouge1_recall, rouge2_recall, rougeL_recall, rouge1_f1, rouge2_f1, rougeL_f1 -> (sum, count).
    """
    scores = [_scorer().score(reference, text) for text, reference in zip(hypotheses, references, strict=True)]
    sums = {f"{kind}_recall": (100 * sum(score[kind].recall for score in scores), len(scores)) for kind in TYPES}
    return sums | {f"{kind}_f1": (100 * sum(score[kind].fmeasure for score in scores), len(scores)) for kind in TYPES}


def bootstrap_f1(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """F1 of rouge1, rouge2 and rougeL as a fraction: the median of the means of 1000 resamples, always the same ones.

    Reseeds numpy's global generator, from which rouge-score draws.
    """
    from rouge_score.scoring import BootstrapAggregator

    aggregator = BootstrapAggregator(n_samples=1000)
    for text, reference in zip(hypotheses, references, strict=True):
        aggregator.add_scores(_scorer().score(reference, text))
    np.random.seed(SEED)
    return {kind: float(score.mid.fmeasure) for kind, score in aggregator.aggregate().items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the F1 scores of a result file as fractions; a user error exits with 2."""
    parser = argparse.ArgumentParser(prog="python -m metrics.rouge", description="ROUGE F1 of summaries")
    parser.add_argument("result", help='JSON list of {"hyp", "ref"}, e.g. test_predict.json')
    flags = parser.parse_args(argv)
    try:
        scores = bootstrap_f1(*_read_summaries(flags.result))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for kind in TYPES:
        print(f"R{kind[1:]}: {scores[kind]:.4f}")


def _read_summaries(path: str) -> tuple[list[str], list[str]]:
    """Hypotheses and references of a result file."""
    try:
        records = parse_json(read_text(path))
        pairs = [(record["hyp"] + "", record["ref"] + "") for record in records]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; check the path.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); evaluate again.") from error
    except (KeyError, TypeError) as error:
        raise UserError(f'{path} must be a list of {{"hyp": "...", "ref": "..."}} records; evaluate again.') from error
    if not pairs:
        raise UserError(f"{path} holds no summaries; evaluate again.")
    hypotheses, references = zip(*pairs, strict=True)
    return list(hypotheses), list(references)


if __name__ == "__main__":
    main()
