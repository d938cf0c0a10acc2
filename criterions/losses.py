"""Caption and text losses as pure functions of logits and targets: no model, no trainer, no logging.

Letters: B batch, T target length, V vocabulary, N target tokens that count, W ids left by a constraint range.
Every loss goes through the same steps, so a new one reuses them: `token_rows` (which tokens, which ids,
log-softmax), `smoothed_loss` (one number per token), `kept_tokens` (which to keep), `consistency_kl`,
`encouraging_bonus`. `criterions/linear_cross_entropy.py` takes the same steps without ever holding all logits.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

NUM_SPECIAL_IDS = 4  # bos, pad, eos, unk: a constraint range never forbids them
COUNT_GUARD = 1e-6  # part of the released formula: a constraint may allow one id only
SMALLEST_MISS = 1e-5  # of 1 - p inside the encouraging logarithm


class LossSums(NamedTuple):
    """Sums over the tokens that count; divide by `ntokens` for means.

    loss: scalar to back-propagate, in nats.
    nll_loss: scalar without smoothing, R-Drop term and bonus, detached.
    ntokens: number of tokens summed, both passes under R-Drop.
    token_nll: (n,) the summands of nll_loss.
    kept: (n,) which of the tokens that count they are; None = all.
    """

    loss: Tensor
    nll_loss: Tensor
    ntokens: int
    token_nll: Tensor
    kept: Tensor | None


class TokenRows(NamedTuple):
    """Log-probabilities of the N target tokens that count.

    log_probs: (N, W) float32, scaled by the row's confidence, -inf where forbidden.
    target: (N,) column of the target in log_probs.
    forbidden: (N, W) True = not allowed, or None without constraint masks.
    ranged: whether a constraint range cut V down to W.
    """

    log_probs: Tensor
    target: Tensor
    forbidden: Tensor | None
    ranged: bool


def parse_constraint_range(text: str) -> tuple[int, int]:
    """Read "start,end" (ids start..end-1 and 0..3 stay allowed); ValueError unless 0 <= start < end."""
    try:
        start, end = (int(part) for part in text.split(",")) if "_" not in text and text.isascii() else (0, 0)
    except ValueError:
        start, end = 0, 0
    if not 0 <= start < end:
        raise ValueError(f'--constraint-range must be "start,end" with 0 <= start < end, got "{text}".')
    return start, end


def check_loss_options(
    epsilon: float = 0.0,
    drop_worst_ratio: float = 0.0,
    ignore_prefix_size: int = 0,
    constraint_range: str | None = None,
    drop_best_ratio: float = 0.0,
    log_end: float | None = None,
) -> None:
    """Raise ValueError naming the flag of the first option that is out of bounds."""
    shares = {
        "--label-smoothing": epsilon,
        "--drop-worst-ratio": drop_worst_ratio,
        "--drop-best-ratio": drop_best_ratio,
    }
    for flag, value in shares.items():
        if not 0 <= value < 1:
            raise ValueError(f"{flag} must be at least 0 and below 1, got {value}.")
    if log_end is not None and not 0 <= log_end <= 1:
        raise ValueError(f"--log-end is a probability between 0 and 1, got {log_end}.")
    if ignore_prefix_size < 0:
        raise ValueError(f"--ignore-prefix-size must not be negative, got {ignore_prefix_size}.")
    if constraint_range is not None:
        parse_constraint_range(constraint_range)


def restrict_to_range(values: Tensor, constraint_range: str) -> Tensor:
    """Keep the columns 0..3 and start..end-1 of the last dimension: (..., V) -> (..., W)."""
    start, end = parse_constraint_range(constraint_range)
    size = values.size(-1)
    if end > size:
        raise ValueError(f"--constraint-range {constraint_range} ends beyond the vocabulary of {size} ids.")
    start, end = max(start, NUM_SPECIAL_IDS), max(end, NUM_SPECIAL_IDS)
    return torch.cat((values[..., :NUM_SPECIAL_IDS], values[..., start:end]), dim=-1)


def targets_in_range(target: Tensor, constraint_range: str) -> Tensor:
    """Renumber ids (N,) to the columns `restrict_to_range` leaves; ValueError for an id outside the range."""
    start, end = parse_constraint_range(constraint_range)
    special = target < NUM_SPECIAL_IDS
    outside = ~special & ((target < start) | (target >= end))
    if outside.any():
        wrong = int(target[outside][0])
        raise ValueError(f"Target id {wrong} is outside --constraint-range {constraint_range}; widen it.")
    return torch.where(special, target, target - max(start, NUM_SPECIAL_IDS) + NUM_SPECIAL_IDS)


def counted_tokens(target: Tensor, pad: int, eos: int, ignore_prefix_size: int, ignore_eos: bool) -> Tensor:
    """Positions in the flattened (B, T) target that enter the loss: (N,), row by row."""
    counted = target.ne(pad)
    counted[:, :ignore_prefix_size] = False
    if ignore_eos:
        counted &= target.ne(eos)
    return counted.flatten().nonzero().squeeze(1)


def take_tokens(values: Tensor, positions: Tensor) -> Tensor:
    """Rows of (B, T, ...) at flat positions (N,): (N, ...); a view, not a copy, when nothing is left out."""
    flat = values.flatten(0, 1)
    return flat if positions.numel() == flat.size(0) else flat.index_select(0, positions)


def token_weights(conf: Tensor, target: Tensor, positions: Tensor) -> Tensor:
    """Confidences (B,) of the rows of target (B, T), at flat positions: (N,)."""
    return take_tokens(conf.unsqueeze(1).expand_as(target), positions)


def token_rows(
    logits: Tensor,
    target: Tensor,
    *,
    pad: int,
    eos: int,
    constraint_masks: Tensor | None = None,
    constraint_range: str | None = None,
    conf: Tensor | None = None,
    ignore_prefix_size: int = 0,
    ignore_eos: bool = False,
) -> TokenRows:
    """Turn logits into log-probabilities of the tokens that count.

    Args:
        logits: (B, T, V), any float type; the softmax is taken in float32 (float64 stays float64).
        target: (B, T) ids.
        constraint_masks: (B, T, V) True = allowed; a target that is not allowed gets an infinite loss.
        constraint_range: "start,end"; a target outside it raises ValueError.
        conf: (B,) weights of the rows; they multiply the log-probabilities.
    """
    positions = counted_tokens(target, pad, eos, ignore_prefix_size, ignore_eos)
    columns = take_tokens(target, positions)
    if constraint_range is not None:
        logits = restrict_to_range(logits, constraint_range)
        columns = targets_in_range(columns, constraint_range)
    # Padding goes before the softmax, the largest tensor here; its masks may also forbid every id.
    rows, forbidden = take_tokens(logits, positions), None
    if constraint_masks is not None:
        if constraint_range is not None:
            constraint_masks = restrict_to_range(constraint_masks, constraint_range)
        forbidden = ~take_tokens(constraint_masks, positions)
        rows = rows.masked_fill(forbidden, -torch.inf)
    log_probs = torch.log_softmax(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))
    if conf is not None:
        weights = token_weights(conf.to(log_probs.dtype), target, positions)
        log_probs = log_probs * weights.unsqueeze(1)
        if forbidden is not None:
            log_probs = log_probs.masked_fill(forbidden, -torch.inf)  # 0 * -inf is NaN
    return TokenRows(log_probs, columns, forbidden, constraint_range is not None)


def other_share(epsilon: float, width: int, ranged: bool) -> float:
    """What label smoothing gives to each of the width - 1 ids that are not the target."""
    return epsilon / (width - 1 + (COUNT_GUARD if ranged else 0.0))


def smoothed_loss(rows: TokenRows, epsilon: float) -> tuple[Tensor, Tensor]:
    """Label-smoothed loss and negative log-likelihood of each token, both (N,).

    The target weighs 1 - epsilon; every other allowed id weighs epsilon over their number.
    """
    log_probs, target, forbidden, ranged = rows
    nll = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1)
    if epsilon == 0:
        return nll, nll
    share: float | Tensor  # weight of each id that is not the target
    if forbidden is not None:
        smooth = -log_probs.masked_fill(forbidden, 0.0).sum(1)
        share = epsilon / ((~forbidden).sum(1).to(log_probs.dtype) - 1 + COUNT_GUARD)
    else:
        smooth = -log_probs.sum(1)
        share = other_share(epsilon, log_probs.size(1), ranged)
    return (1 - epsilon - share) * nll + share * smooth, nll


def kept_tokens(
    losses: Tensor, drop_worst_ratio: float = 0.0, drop_best_ratio: float = 0.0, paired: bool = False
) -> Tensor:
    """Indices of int(N * (1 - worst)) tokens with the smallest losses, and of these n, int(n * (1 - best)) largest.

    Args:
        losses: (N,).
        paired: the two halves are two passes over the same tokens; the first chooses for both.
    """
    count = losses.size(0) // 2 if paired else losses.size(0)
    chosen = losses.detach()[:count].argsort()[: int(count * (1 - drop_worst_ratio))]
    chosen = chosen[len(chosen) - int(len(chosen) * (1 - drop_best_ratio)) :]
    return torch.cat((chosen, chosen + count)) if paired else chosen


def take_rows(rows: TokenRows, chosen: Tensor) -> TokenRows:
    """The chosen tokens of rows."""
    forbidden = None if rows.forbidden is None else rows.forbidden[chosen]
    return TokenRows(rows.log_probs[chosen], rows.target[chosen], forbidden, rows.ranged)


def consistency_kl(rows: TokenRows) -> Tensor:
    """Half the symmetric KL divergence between the two halves of rows, summed (R-Drop, Liang et al. 2021)."""
    log_probs = rows.log_probs
    if rows.forbidden is not None:
        log_probs = log_probs.masked_fill(rows.forbidden, 0.0)  # equal in both passes: contributes nothing
    first, second = log_probs.chunk(2)
    return 0.5 * ((first.exp() - second.exp()) * (first - second)).sum()


def encouraging_bonus(rows: TokenRows, epsilon: float, log_end: float, vocab_size: int) -> Tensor:
    """Encouraging loss: ln(1 - p) of each token, smoothed and summed; at most 0 (Zhao et al. 2022, arXiv:2110.06537).

    The target weighs 1 - epsilon, and every id of the vocabulary, the target too, epsilon / vocab_size.

    Args:
        log_end: from this probability on the logarithm continues as its tangent; 1 = never.
    """
    probs = rows.log_probs.exp()  # 0 where forbidden, which costs nothing
    bonus = (1 - probs).clamp_min(SMALLEST_MISS).log()
    if log_end != 1:
        tangent = math.log(1 - log_end) - (probs - log_end) / (1 - log_end)
        bonus = torch.where(probs > log_end, tangent, bonus)
    of_target = bonus.gather(1, rows.target.unsqueeze(1))
    return (1 - epsilon) * of_target.sum() + epsilon / vocab_size * bonus.sum()


def label_smoothed_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    pad: int,
    eos: int,
    epsilon: float,
    constraint_masks: Tensor | None = None,
    constraint_range: str | None = None,
    conf: Tensor | None = None,
    ignore_prefix_size: int = 0,
    ignore_eos: bool = False,
    drop_worst_ratio: float = 0.0,
    drop_best_ratio: float = 0.0,
    use_rdrop: bool = False,
    reg_alpha: float = 1.0,
    log_end: float | None = None,
) -> LossSums:
    """Label-smoothed cross entropy summed over the target tokens that count.

    Args:
        logits: (B, T, V).
        target: (B, T) ids; positions that hold `pad` never count.
        epsilon: probability mass that smoothing gives to the other allowed ids.
        constraint_masks: (B, T, V) True = allowed.
        constraint_range: "start,end": ids 0..3 and start..end-1 are allowed.
        conf: (B,) weight of each row's loss; does not change `ntokens`.
        ignore_prefix_size: leading target positions that do not count.
        ignore_eos: the end of sentence does not count.
        drop_worst_ratio: share of tokens left out, those with the largest loss.
        drop_best_ratio: share of the remaining tokens left out, those with the smallest loss.
        use_rdrop: rows b and B/2 + b are two passes of one sample; adds reg_alpha * `consistency_kl`.
        log_end: adds `encouraging_bonus`.

    Raises:
        ValueError: an option out of bounds, a target outside the range, an odd B with R-Drop.
    """
    check_loss_options(epsilon, drop_worst_ratio, ignore_prefix_size, constraint_range, drop_best_ratio, log_end)
    if use_rdrop and target.size(0) % 2:
        raise ValueError(f"--use-rdrop needs every row twice, got an odd number of rows ({target.size(0)}).")
    rows = token_rows(
        logits,
        target,
        pad=pad,
        eos=eos,
        constraint_masks=constraint_masks,
        constraint_range=constraint_range,
        conf=conf,
        ignore_prefix_size=ignore_prefix_size,
        ignore_eos=ignore_eos,
    )
    losses, nll = smoothed_loss(rows, epsilon)
    chosen = None
    if drop_worst_ratio > 0 or drop_best_ratio > 0:
        chosen = kept_tokens(losses, drop_worst_ratio, drop_best_ratio, paired=use_rdrop)
        losses, nll = losses[chosen], nll[chosen]
        rows = take_rows(rows, chosen) if use_rdrop or log_end is not None else rows
    loss = losses.sum()
    if use_rdrop:
        loss = loss + reg_alpha * consistency_kl(rows)
    if log_end is not None:
        loss = loss + encouraging_bonus(rows, epsilon, log_end, logits.size(-1))
    nll = nll.detach()
    return LossSums(loss, nll.sum(), losses.numel(), nll, chosen)


def accuracy_counts(rows: TokenRows) -> tuple[int, int]:
    """Count the tokens whose most likely allowed id is the target, and all tokens of rows."""
    return int(rows.log_probs.argmax(1).eq(rows.target).sum()), rows.target.numel()
