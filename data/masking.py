"""Text infilling: spans of words become masks (Lewis et al., BART, 2020); pure functions of ids and a generator."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.text import SPECIALS, Vocabulary
from utils.errors import UserError

MASK_LENGTHS = ("span-poisson", "word", "subword")
TINY, MOST_LENGTHS = 1e-7, 128  # where the table of span lengths ends
MOST_LAMBDA = 64.0  # the table would cut larger means


@dataclass
class MaskingOptions:
    """How a text is corrupted; each field is a flag of the same name."""

    mask_ratio: float = field(default=0.3, metadata={"help": "share of the words to mask"})
    random_ratio: float = field(default=0.0, metadata={"help": "chance that a random token takes the place of a mask"})
    keep_ratio: float = field(default=0.0, metadata={"help": "accepted for old scripts; has no effect"})
    mask_length: str = field(default="span-poisson", metadata={"help": "what is masked: span-poisson, word or subword"})
    poisson_lambda: float = field(default=3.0, metadata={"help": "mean length of a span in words"})
    replace_length: int = field(
        default=1, metadata={"help": "masks for a span: 1; 0 = the span vanishes; -1 = one for each of its tokens"}
    )


def check_masking(options: MaskingOptions) -> None:
    """UserError for values that are out of bounds or do not go together."""
    for name in ("mask_ratio", "random_ratio"):
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}; pass a share from 0 to 1.")
    if options.mask_length not in MASK_LENGTHS:
        raise UserError(f"Unknown --mask-length {options.mask_length!r}; choose one of {', '.join(MASK_LENGTHS)}.")
    if options.replace_length not in (-1, 0, 1):
        raise UserError(f"--replace-length is {options.replace_length}; choose 1, 0 or -1.")
    if options.mask_length == "subword" and options.replace_length == -1:
        raise UserError("--mask-length=subword needs --replace-length 0 or 1.")
    if not 0 < options.poisson_lambda <= MOST_LAMBDA:
        raise UserError(f"--poisson-lambda is {options.poisson_lambda}; pass a mean above 0, at most {MOST_LAMBDA:g}.")


def word_starts(vocab: Vocabulary) -> Tensor:
    """Which ids begin a word, (V,) bool; masks, image codes and location bins do not."""
    starts = torch.zeros(len(vocab), dtype=torch.bool)
    starts[: len(SPECIALS)] = True
    for number in range(len(SPECIALS), vocab.mask):
        if vocab.bpe == "bert":
            starts[number] = not vocab[number].startswith("##")
        else:
            starts[number] = vocab[number].startswith("madeupword") or vocab.decode([number]).startswith(" ")
    return starts


def span_length_shares(mean: float) -> Tensor:
    """Poisson probabilities (K,), float32, of the lengths 0..K-1, up to the first beyond the mean that is tiny."""
    shares = [math.exp(-mean)]
    while len(shares) < MOST_LENGTHS and (shares[-1] >= TINY or len(shares) <= mean):
        shares.append(shares[-1] * mean / len(shares))
    table = torch.tensor(shares)
    return table / table.sum()


def draw_span_lengths(total: int, mean: float, generator: torch.Generator) -> Tensor:
    """Lengths (n,), int64, some of them 0, that sum to exactly `total` > 0; the last one is cut to fit."""
    shares = span_length_shares(mean)
    lengths = torch.multinomial(shares, total, replacement=True, generator=generator)
    while lengths.sum() < total:
        lengths = torch.cat([lengths, torch.multinomial(shares, total, replacement=True, generator=generator)])
    sums = lengths.cumsum(0)
    last = int((sums < total).sum())
    lengths = lengths[: last + 1]
    lengths[last] -= sums[last] - total
    return lengths


def infill(ids: Tensor, starts: Tensor, mask: int, options: MaskingOptions, generator: torch.Generator) -> Tensor:
    """Corrupt a text: some words give way to masks, and a mask comes in for each span of length 0.

    Args:
        ids: (N,) int64 with bos and eos, which stay; not changed.
        starts: (V,) bool, see `word_starts`.
        mask: id of the mask.
        options: see `check_masking`.
        generator: on the CPU; draws depend on it alone.

    Returns:
        (N',) int64.
    """
    begins = torch.ones_like(ids, dtype=torch.bool) if options.mask_length == "subword" else starts[ids]
    begins[0] = begins[-1] = False
    words = begins.nonzero().flatten()  # (W,)
    total = math.ceil(options.mask_ratio * len(words))
    if total == 0:
        return ids
    lengths = torch.ones(total, dtype=torch.long)
    if options.mask_length == "span-poisson":
        lengths = draw_span_lengths(total, options.poisson_lambda, generator)
    spans = lengths[lengths > 0]
    if len(spans):
        ids = _mask_spans(ids, words, spans, mask, options, generator)
    if len(spans) < len(lengths):
        ids = _insert_masks(ids, len(lengths) - len(spans), mask, options.random_ratio, generator)
    return ids


def _mask_spans(
    ids: Tensor, words: Tensor, spans: Tensor, mask: int, options: MaskingOptions, generator: torch.Generator
) -> Tensor:
    """Mask `spans` (K,) words each from K random ones of the `words` (W,) on; a span may swallow another's start."""
    order = torch.randperm(len(words), generator=generator)[: len(spans)]
    heads = words[order]
    bounds = torch.cat([words, torch.tensor([len(ids) - 1])])  # a word ends where the next one or eos begins
    stops = bounds[(order + spans).clamp(max=len(words))]
    is_random = torch.rand(len(spans), generator=generator) < options.random_ratio
    ids = ids.clone()
    ids[heads] = mask
    ids[heads[is_random]] = _random_ids(int(is_random.sum()), mask, generator)
    swallowed = torch.zeros_like(ids, dtype=torch.bool)
    for head, stop in zip(heads.tolist(), stops.tolist(), strict=True):
        swallowed[head + 1 : stop] = True
    if options.replace_length == -1:
        return ids.masked_fill(swallowed, mask)
    if options.replace_length == 0:
        swallowed[heads] = True
    return ids[~swallowed]


def _insert_masks(ids: Tensor, count: int, mask: int, random_ratio: float, generator: torch.Generator) -> Tensor:
    """Put `count` masks at random places between bos and eos, a share of them as random ids."""
    # The released programs round up a share of the length: now and then that is one mask more.
    count = math.ceil(len(ids) * (count / len(ids)))
    places = 1 + torch.randperm(len(ids) + count - 2, generator=generator)[:count]
    inserted = torch.full((count,), mask)
    num_random = math.ceil(count * random_ratio)
    inserted[:num_random] = _random_ids(num_random, mask, generator)
    result = ids.new_zeros(len(ids) + count)
    is_old = torch.ones_like(result, dtype=torch.bool)
    is_old[places] = False
    result[places] = inserted
    result[is_old] = ids
    return result


def _random_ids(count: int, mask: int, generator: torch.Generator) -> Tensor:
    """Uniform ids (n,) of text tokens or the mask."""
    return torch.randint(len(SPECIALS), mask + 1, (count,), generator=generator)
