"""Metric sums and figures, against golden figures, scikit-learn and torchvision."""

import math
import random

import pytest
import sacrebleu
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

from metrics.sums import (
    Metric,
    bleu,
    bleu_sums,
    confusion,
    f1,
    mcc,
    mean,
    vqa_soft_scores,
)


def test_mean_of_sums() -> None:
    assert mean((3.0, 4)) == 0.75
    assert mean((0, 0)) == 0.0
    assert Metric(3).value([7, 2]) == 3.5 and Metric(3).digits == 3
    assert Metric(4, f1).value([1, 1, 0, 0]) == f1([1, 1, 0, 0])


def test_bleu_by_hand() -> None:
    # Of 4, 3, 2, 1 n-grams 3, 2, 1, 0 are found; 0 of 1 is smoothed to 1 / 2. The closer reference is as long.
    assert bleu_sums(["a b c d"], [["a b c e", "z"]]) == (3, 2, 1, 0, 4, 3, 2, 1, 4, 4)
    assert bleu([3, 2, 1, 0, 4, 3, 2, 1, 4, 4]) == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    assert bleu([3.0, 2, 1, 0, 4, 3, 2, 1, 4, 8]) == pytest.approx(bleu([3, 2, 1, 0, 4, 3, 2, 1, 4, 4]) / math.e)
    assert bleu([0] * 10) == bleu(bleu_sums([""], [["a"]])) == 0


def test_bleu_of_parts_is_bleu_of_the_whole() -> None:
    rng = random.Random(0)
    texts = [
        " ".join(rng.choices(["a", "red", "on", "it's", "x-ray,", "3.5"], k=rng.randint(0, 12))) for _ in range(60)
    ]
    references = [rng.choices(texts, k=rng.randint(1, 5)) for _ in texts]
    parts = [bleu_sums(texts[i : i + 7], references[i : i + 7]) for i in range(0, 60, 7)]
    padded = [[own[i] if i < len(own) else None for own in references] for i in range(5)]
    expected = sacrebleu.corpus_bleu(texts, padded)  # type: ignore[arg-type]
    assert bleu([sum(column) for column in zip(*parts, strict=True)]) == pytest.approx(expected.score)
    assert expected.score > 5


def test_vqa_score_is_the_confidence_of_the_answer() -> None:
    references = [{"yes": 1.0, "no": 0.3}, {"2": 0.6}, {}]
    assert vqa_soft_scores(["no", "3", "red"], references) == [0.3, 0.0, 0.0]
    with pytest.raises(ValueError):
        vqa_soft_scores(["no"], references)


@pytest.mark.parametrize("seed", range(5))
def test_judgements_equal_scikit_learn(seed: int) -> None:
    rng = random.Random(seed)
    true = [rng.random() < 0.3 for _ in range(97)]
    said = [value ^ (rng.random() < 0.25) for value in true]
    tp, fp, tn, fn = counts = confusion(said, true)
    assert [tn, fp, fn, tp] == confusion_matrix(true, said).ravel().tolist()
    assert f1(counts) == pytest.approx(f1_score(true, said), abs=1e-12)
    assert mcc(counts) == pytest.approx(matthews_corrcoef(true, said), abs=1e-12)


def test_sums_add_up_over_batches() -> None:
    said, true = [True, True, False, False, True], [True, False, False, True, True]
    parts = confusion(said[:2], true[:2]), confusion(said[2:], true[2:])
    assert tuple(map(sum, zip(*parts, strict=True))) == confusion(said, true) == (2, 1, 1, 1)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (0, 0, 5, 3), (0, 4, 0, 0), (0, 2, 3, 0)])
def test_undefined_figures_are_zero(counts: tuple[int, int, int, int]) -> None:
    assert f1(counts) == 0.0
    assert mcc(counts) == 0.0


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError):
        confusion([True], [True, False])
