"""Text infilling: the original's texts from the original's seeds, invariants, and frequencies over many draws."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.masking import MaskingOptions, check_masking, draw_span_lengths, infill, span_length_shares, word_starts
from data.text import Vocabulary
from tests.conftest import load_golden
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
FIGURES = load_golden("samples_pretrain.json")
DRAWS = 10_000
BOS, EOS, MASK = 0, 2, 199
STARTS = torch.arange(200) % 3 == 0  # ids 6, 9, 12 ... begin a word, the others go on with it


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.load(ROOT / "utils" / "BPE")


@pytest.fixture(scope="module")
def starts(vocab: Vocabulary) -> Tensor:
    return word_starts(vocab)


def text_of(words: int, pieces: int = 1) -> Tensor:
    """bos, `words` different words of `pieces` ids each, eos."""
    ids = [6 + 3 * word + piece for word in range(words) for piece in range(pieces)]
    return torch.tensor([BOS, *ids, EOS])


def corrupted(ids: Tensor, seed: int, **options: Any) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return infill(ids, STARTS, MASK, MaskingOptions(**options), generator).tolist()


def seeds_and_texts() -> list[tuple[int, list[dict[str, Any]]]]:
    """The original's texts with the seed of torch that it had before."""
    calls = [(2000 + i, samples) for i, samples in enumerate(FIGURES["pure_text"]["samples"])]
    rows = enumerate(FIGURES["train"]["samples"])
    return calls + [(1000 + i, row["extra_samples"][:2]) for i, row in rows if row["extra_samples"]]


def test_table_of_word_starts(starts: Tensor) -> None:
    figures = FIGURES["whole_word_mask"]
    assert starts.shape == (figures["length"],) and starts.sum() == figures["mask_whole_word_sum"]
    assert starts[:200].int().tolist() == figures["first200"]
    assert starts[50264:].sum() == figures["last_sum_from_50264"]


def test_table_of_span_lengths() -> None:
    expected = FIGURES["whole_word_mask"]["span_length_probabilities"]
    assert span_length_shares(3.0).tolist() == pytest.approx(expected, rel=1e-6)
    for mean in (0.1, 17.0, 64.0):
        shares = span_length_shares(mean).double()
        assert shares.sum().item() == pytest.approx(1, abs=1e-6)
        assert (shares * torch.arange(len(shares))).sum().item() == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("seed, samples", seeds_and_texts())
def test_texts_of_the_original(seed: int, samples: list[dict[str, Any]], vocab: Vocabulary, starts: Tensor) -> None:
    generator = torch.Generator().manual_seed(seed)
    assert len(samples) == 2
    for sample in samples:
        whole = torch.tensor([BOS, *sample["target"]])
        masked = infill(whole, starts, vocab.mask, MaskingOptions(), generator)
        assert masked[1:-1].tolist() == sample["source"][8:-3]


def test_lengths_are_poisson() -> None:
    lengths = draw_span_lengths(3 * DRAWS, 3.0, torch.Generator().manual_seed(1))
    assert lengths.sum() == 3 * DRAWS
    full = lengths[:-1]  # the last one is cut
    assert full.double().mean().item() == pytest.approx(3, abs=3 * math.sqrt(3 / len(full)))
    for length, share in enumerate(span_length_shares(3.0)[:9].tolist()):
        error = math.sqrt(share * (1 - share) / len(full))
        assert (full == length).double().mean().item() == pytest.approx(share, abs=3 * error)


def test_lengths_sum_to_every_total() -> None:
    generator = torch.Generator().manual_seed(0)
    for total in range(1, 60):
        lengths = draw_span_lengths(total, 0.2, generator)
        assert lengths.sum() == total and lengths.min() >= 0 and lengths[-1] > 0


def test_share_of_words_that_stay() -> None:
    """Against a simulation of overlapping spans written another way."""
    words, total = 40, 12
    ids = text_of(words)
    masked = [corrupted(ids, seed) for seed in range(DRAWS)]
    kept = np.array([sum(number not in (BOS, EOS, MASK) for number in text) for text in masked])
    rng = np.random.default_rng(0)
    simulated = np.empty(DRAWS // 4)
    for draw in range(len(simulated)):
        lengths: list[int] = []
        while sum(lengths) < total:
            lengths.append(rng.poisson(3))
        lengths[-1] -= sum(lengths) - total
        spans = [length for length in lengths if length]
        heads = rng.choice(words, len(spans), replace=False)
        covered = {head + i for head, length in zip(heads, spans, strict=True) for i in range(length)}
        simulated[draw] = words - len({word for word in covered if word < words})
    error = math.sqrt(kept.var() / len(kept) + simulated.var() / len(simulated))
    assert abs(kept.mean() - simulated.mean()) < 3 * error
    assert kept.min() >= words - total


def test_share_of_masked_words() -> None:
    ids = text_of(20, pieces=2)
    masked = [corrupted(ids, seed, mask_length="word") for seed in range(DRAWS // 4)]
    assert all(text.count(MASK) == 6 and len(text) == 2 + 14 * 2 + 6 for text in masked)
    words = torch.tensor([[6 + 3 * word in text for word in range(20)] for text in masked])
    rates = 1 - words.double().mean(dim=0)
    assert (rates - 0.3).abs().max() < 4 * math.sqrt(0.3 * 0.7 / len(masked))


def test_random_tokens_take_the_place_of_masks() -> None:
    ids = text_of(20)
    masked = [corrupted(ids, seed, mask_length="word", random_ratio=0.25) for seed in range(DRAWS // 4)]
    masks = sum(text.count(MASK) for text in masked)
    expected = 6 * len(masked) * (0.75 + 0.25 / (MASK - 3))  # a random id may be the mask
    assert abs(masks - expected) < 3 * math.sqrt(expected * 0.25)
    assert all(len(text) == 22 and min(text[1:-1]) >= 4 for text in masked)


@pytest.mark.parametrize("replace_length", [1, 0, -1])
@pytest.mark.parametrize("mask_length", ["span-poisson", "word", "subword"])
def test_what_is_left_is_in_order(mask_length: str, replace_length: int) -> None:
    if mask_length == "subword" and replace_length == -1:
        return
    ids = text_of(15, pieces=3)
    for seed in range(200):
        options = dict(mask_length=mask_length, replace_length=replace_length)
        text = corrupted(ids, seed, **options)
        assert (text[0], text[-1]) == (BOS, EOS) and text != ids.tolist()
        left = [number for number in text if number != MASK]
        assert left == [number for number in ids.tolist() if number in left]
        if mask_length == "word":
            assert {text.count(MASK)} == {{1: 5, 0: 0, -1: 15}[replace_length]}
        if mask_length != "subword":  # whole words only
            assert all((number in left) == (number - number % 3 in left) for number in ids[1:-1].tolist())
        else:
            assert len(left) == len(ids) - math.ceil(0.3 * 45)
        if mask_length == "span-poisson" and replace_length == -1:
            assert len(text) >= len(ids)


def test_leading_fragment_is_no_word() -> None:
    ids = torch.tensor([BOS, 7, 8, 6, 9, EOS])
    for seed in range(100):
        assert corrupted(ids, seed, mask_ratio=1.0, mask_length="word") == [BOS, 7, 8, MASK, MASK, EOS]


def test_nothing_to_mask() -> None:
    assert corrupted(torch.tensor([BOS, 7, 8, EOS]), 0) == [BOS, 7, 8, EOS]
    assert corrupted(torch.tensor([BOS, EOS]), 0) == [BOS, EOS]
    assert corrupted(text_of(9), 0, mask_ratio=0.0) == text_of(9).tolist()


def test_given_ids_are_not_changed() -> None:
    ids = text_of(30)
    before = ids.clone()
    corrupted(ids, 3)
    assert torch.equal(ids, before)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"mask_ratio": 1.5}, "--mask-ratio is 1.5"),
        ({"random_ratio": -0.1}, "--random-ratio is -0.1"),
        ({"mask_length": "spans"}, "Unknown --mask-length 'spans'"),
        ({"replace_length": 2}, "--replace-length is 2"),
        ({"mask_length": "subword", "replace_length": -1}, "needs --replace-length 0 or 1"),
        ({"poisson_lambda": 0.0}, "--poisson-lambda is 0"),
        ({"poisson_lambda": math.nan}, "--poisson-lambda is nan"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_masking(MaskingOptions(**options))
