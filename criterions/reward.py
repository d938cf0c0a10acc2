"""Self-critical training (Rennie et al. 2017) as pure functions: rewards, and samples as decoder batches.

Letters: B inputs, K samples of each, N samples in all, T longest sample. The loss itself is a cross entropy whose rows
are weighted with their rewards: `criterions.losses` and `criterions.linear_cross_entropy` with `conf`.
"""

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def leave_one_out(scores: Tensor) -> Tensor:
    """Score of each of K samples of one input minus the mean of the others: (K,) -> (K,), summing to 0.

    Exactly 0 when all scores are equal, and for a sample that has no others.
    """
    count = scores.numel()
    if count < 2:
        return torch.zeros_like(scores)
    relative = scores - scores[0]  # equal scores must not leave rounding errors
    return (count * relative - relative.sum()) / (count - 1)


def pack_rewards(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Rewards (B * K,) of N scores, the first counts[0] of which are the first input's; 0 where a sample is missing.

    K is the largest of the B counts.
    """
    rewards = [leave_one_out(own) for own in scores.split(list(counts))]
    return pad_sequence(rewards, batch_first=True).flatten()


def pack_samples(samples: Sequence[Sequence[Tensor]], bos: int, pad: int) -> tuple[Tensor, Tensor]:
    """Samples as previous tokens and target, both (B * K, T), right-padded, K = most samples of an input.

    Args:
        samples: per input, token ids (t,) of each sample without bos and with eos; not all may be missing.
    """
    most = max(map(len, samples))
    missing = next(chain.from_iterable(samples)).new_empty(0)
    rows = chain.from_iterable([*own, *[missing] * (most - len(own))] for own in samples)
    target = pad_sequence(list(rows), batch_first=True, padding_value=pad)
    previous = F.pad(target[:, :-1], (1, 0), value=bos)
    return previous.masked_fill(target.eq(pad), pad), target
