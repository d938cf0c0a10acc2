import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from criterions.losses import (
    LossSums,
    accuracy_counts,
    check_loss_options,
    consistency_kl,
    encouraging_bonus,
    kept_tokens,
    label_smoothed_cross_entropy,
    smoothed_loss,
    take_rows,
    token_rows,
)

RUNS = json.loads((Path(__file__).parents[1] / "golden" / "losses_tiny.json").read_text())["function_runs"]
CROSS_ENTROPY_RUNS = [name for name, run in RUNS["runs"].items() if run["criterion"] == "cross_entropy"]
# The original mixes the two passes of R-Drop in its encouraging loss: tested on its own.
ENCOURAGING_RUNS = [
    name for name, run in RUNS["runs"].items() if run["criterion"] == "encouraging" and name != "encouraging_rdrop"
]
PAD, EOS = 1, 2
A, TARGET_A = [0.0, 1, 2, 3, 4, 5, 6, 7], 7
B, TARGET_B = [1, 0, 0.5, -1, 2, 0.25, -0.5, 1.5], 4


def loss_sums(logits: Tensor, target: Tensor, epsilon: float = 0.1, **options: Any) -> LossSums:
    return label_smoothed_cross_entropy(logits, target, pad=PAD, eos=EOS, epsilon=epsilon, **options)


def golden_inputs(run: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, target and keyword arguments of one stored run."""
    options = dict(run["options"])
    if run["criterion"] == "encouraging":
        options.setdefault("log_end", 0.75)
        for ignored in ("drop_best_ratio", "drop_best_after"):  # the original takes them and does nothing
            options.pop(ignored, None)
    options["epsilon"] = options.pop("label_smoothing")
    if run["update_num"] <= options.pop("drop_worst_after", 0):  # the criterion's part
        options["drop_worst_ratio"] = 0.0
    copies = run["rows"] // 4
    target = torch.tensor(RUNS["target"])
    if "constraint_range" in options:
        target = torch.where((target == PAD) | (target == EOS), target, 10 + target % 20)
    if run["conf"]:
        options["conf"] = torch.tensor(RUNS["conf"]).repeat(copies)
    if run["constraint_masks"]:
        masks = torch.zeros(4, 6, 40, dtype=torch.bool)
        for row, positions in enumerate(RUNS["allowed"]):
            for position, ids in enumerate(positions):
                masks[row, position, ids] = True
        options["constraint_masks"] = masks.repeat(copies, 1, 1)
    logits = torch.tensor(RUNS["logits"][: run["rows"]], requires_grad=True)
    return logits, target.repeat(copies, 1), options


@pytest.mark.parametrize("name", CROSS_ENTROPY_RUNS + ENCOURAGING_RUNS)
def test_golden_run(name: str) -> None:
    run = RUNS["runs"][name]
    logits, target, options = golden_inputs(run)
    sums = loss_sums(logits, target, **options)
    (gradient,) = torch.autograd.grad(sums.loss, logits)
    assert sums.ntokens == run["ntokens"]
    assert sums.loss.item() == pytest.approx(run["loss"], rel=1e-5)
    assert sums.nll_loss.item() == pytest.approx(run["nll_loss"], rel=1e-5)
    assert gradient.norm().item() == pytest.approx(run["gradient_norm"], rel=1e-4)
    assert gradient.abs().sum().item() == pytest.approx(run["gradient_sum_abs"], rel=1e-4)
    assert gradient[0, 0, :8].tolist() == pytest.approx(run["gradient_0_0_first8"], abs=1e-6)


def test_golden_runs_are_all_there() -> None:
    assert len(CROSS_ENTROPY_RUNS) == 19 and len(ENCOURAGING_RUNS) == 12


def test_golden_encouraging_run_with_rdrop_is_ours_with_the_passes_mixed() -> None:
    """The original sorts the tokens of both passes by loss, then compares the first half with the second."""
    run = RUNS["runs"]["encouraging_rdrop"]
    logits, target, options = golden_inputs(run)
    rows = token_rows(logits, target, pad=PAD, eos=EOS)
    losses = smoothed_loss(rows, options["epsilon"])[0]
    mixed = consistency_kl(take_rows(rows, losses.argsort(descending=True)))
    difference = (mixed - consistency_kl(rows)).item()
    assert loss_sums(logits, target, **options).loss.item() + difference == pytest.approx(run["loss"], rel=1e-5)


def test_rewards_as_confidences_give_the_golden_self_critical_loss() -> None:
    golden = RUNS["scst_loss"]
    logits, target = torch.tensor(RUNS["logits"][:4], requires_grad=True), torch.tensor(RUNS["target"])
    sums = loss_sums(logits, target, 0.0, conf=torch.tensor(golden["reward"]))
    (gradient,) = torch.autograd.grad(sums.loss, logits)
    assert sums.loss.item() == pytest.approx(golden["loss"], rel=1e-5) and sums.ntokens == golden["ntokens"]
    assert gradient.norm().item() == pytest.approx(golden["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize(
    "logits, target, options, loss, nll",
    [
        (A, TARGET_A, {}, 0.8583396265, 0.4583396265),
        (B, TARGET_B, {}, 1.1452187431, 0.9702187431),
        (A, 6, {"constraint_range": "5,7"}, 0.7482468395, 0.3682469229),
        (B, 5, {"constraint_range": "5,7"}, 1.8064898037, 1.7814898443),
        (A, TARGET_A, {"conf": torch.tensor([2.0])}, 1.7166792530, 0.9166792530),
        (B, TARGET_B, {"conf": torch.tensor([2.0])}, 2.2904374863, 1.9404374863),
    ],
)
def test_reference_numbers(logits: list[float], target: int, options: dict[str, Any], loss: float, nll: float) -> None:
    sums = loss_sums(torch.tensor([[logits]], dtype=torch.float64), torch.tensor([[target]]), **options)
    tolerance = 1e-9
    assert sums.loss.item() == pytest.approx(loss, abs=tolerance)
    assert sums.nll_loss.item() == pytest.approx(nll, abs=tolerance)


@pytest.mark.parametrize(
    "log_end, first, second",
    [(0.75, -1.2364072987, 0.7020920561), (1.0, -1.7140912124, 0.7020920561), (0.5, -0.7370437619, 0.7020920561)],
)
def test_encouraging_reference_numbers(log_end: float, first: float, second: float) -> None:
    for logits, target, loss in (([0.0, 1, 2, 3, 4, 5, 6, 9], 7, first), (B, TARGET_B, second)):
        values = torch.tensor([[logits]], dtype=torch.float64)
        sums = loss_sums(values, torch.tensor([[target]]), log_end=log_end)
        assert sums.loss.item() == pytest.approx(loss, abs=1e-9)


def test_bonus_is_smooth_where_the_tangent_begins_and_bounded_without_it() -> None:
    probs = torch.tensor([0.75 - 1e-6, 0.75 + 1e-6, 1 - 1e-9], dtype=torch.float64)
    logits = torch.stack([probs.log(), (1 - probs).log()], 1).unsqueeze(1).requires_grad_()
    below, above, sure = token_rows(logits, torch.zeros(3, 1, dtype=torch.long), pad=PAD, eos=EOS).log_probs.split(1)
    rows = [token_rows(x.unsqueeze(1), torch.zeros(1, 1, dtype=torch.long), pad=PAD, eos=EOS) for x in (below, above)]
    values = [encouraging_bonus(r, 0.0, 0.75, 2) for r in rows]
    slopes = [torch.autograd.grad(value, logits, retain_graph=True)[0].sum(0)[0, 0] for value in values]
    assert values[0].item() == pytest.approx(values[1].item(), abs=2e-5)
    assert slopes[0].item() == pytest.approx(slopes[1].item(), abs=2e-5)
    certain = token_rows(sure.unsqueeze(1), torch.zeros(1, 1, dtype=torch.long), pad=PAD, eos=EOS)
    assert encouraging_bonus(certain, 0.0, 1.0, 2).item() == pytest.approx(-11.512925465)  # ln(1e-5)


def test_best_tokens_go_after_the_worst() -> None:
    losses = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    assert kept_tokens(losses, 0.3).tolist() == [5, 1, 3, 4]
    assert kept_tokens(losses, 0.3, 0.3).tolist() == [3, 4]  # int(4 * 0.7) of the four left
    assert kept_tokens(losses, 0.0, 0.5).tolist() == [4, 2, 0]
    assert kept_tokens(losses, 0.0, 0.5, paired=True).tolist() == [0, 3]


def test_dropping_the_best_leaves_the_hard_tokens_to_loss_and_bonus() -> None:
    logits, target = torch.zeros(1, 3, 8), torch.tensor([[4, 5, 6]])
    logits[0, [0, 1, 2], [4, 5, 6]] = torch.tensor([3.0, 1.0, 2.0])
    sums = loss_sums(logits, target, log_end=0.75, drop_best_ratio=0.3)
    hard = loss_sums(logits[:, 1:], target[:, 1:], log_end=0.75)
    assert sums.ntokens == 2
    torch.testing.assert_close((sums.loss, sums.nll_loss), (hard.loss, hard.nll_loss))


def test_consistency_kl_reference_number() -> None:
    logits = torch.tensor([[A], [B]], dtype=torch.float64)
    rows = token_rows(logits, torch.tensor([[TARGET_A], [TARGET_A]]), pad=PAD, eos=EOS)
    assert consistency_kl(rows).item() == pytest.approx(1.4307384896, abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"constraint_range": "5,9"},
        {"masks": True},
        {"masks": True, "constraint_range": "5,9"},
        {"conf": torch.tensor([0.5, 2.0, 1.0, 0.3])},
        {"masks": True, "conf": torch.tensor([0.0, 2.0, 1.0, 0.3])},
        {"use_rdrop": True, "reg_alpha": 0.7},
        {"use_rdrop": True, "masks": True, "conf": torch.tensor([0.5, 2.0, 0.5, 2.0])},
        {"use_rdrop": True, "drop_worst_ratio": 0.4},
        {"drop_worst_ratio": 0.4, "ignore_prefix_size": 1},
        {"ignore_eos": True},
        {"log_end": 0.2},
        {"log_end": 1.0, "constraint_range": "5,9"},
        {"log_end": 0.2, "masks": True, "conf": torch.tensor([0.5, 2.0, 0.0, 0.3])},
        {"log_end": 0.2, "use_rdrop": True, "drop_worst_ratio": 0.3, "drop_best_ratio": 0.4},
    ],
)
def test_gradient_matches_finite_differences(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    options = dict(options)
    target = torch.tensor([[5, 7, EOS], [6, EOS, PAD]]).repeat(2, 1)
    if options.pop("masks", False):
        masks = (torch.rand(2, 3, 10, generator=generator) < 0.5).repeat(2, 1, 1)
        masks.scatter_(2, target.unsqueeze(2), True)
        masks[target == PAD] = False
        options["constraint_masks"] = masks
    logits = torch.randn(4, 3, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss_sums(x, target, **options).loss, logits)


def test_padding_alone_gives_zero_and_zero_gradients() -> None:
    target = torch.full((2, 3), PAD)
    rdrop = {"use_rdrop": True, "drop_worst_ratio": 0.5, "drop_best_ratio": 0.5}
    for options in ({}, rdrop, {"constraint_range": "5,7"}, {"log_end": 0.75}):
        logits = torch.randn(2, 3, 8, requires_grad=True)
        sums = loss_sums(logits, target, **options)
        (gradient,) = torch.autograd.grad(sums.loss, logits)
        assert (sums.loss.item(), sums.nll_loss.item(), sums.ntokens) == (0.0, 0.0, 0)
        assert not gradient.any()


def test_one_allowed_id_costs_nothing() -> None:
    target = torch.tensor([[5, EOS, PAD]])
    masks = torch.zeros(1, 3, 8, dtype=torch.bool).scatter_(2, target.unsqueeze(2), True)
    masks[target == PAD] = False  # nothing allowed where the target is padding
    logits = torch.randn(1, 3, 8, requires_grad=True)
    sums = loss_sums(logits, target, constraint_masks=masks)
    (gradient,) = torch.autograd.grad(sums.loss, logits)
    assert sums.loss.item() == 0.0 and sums.ntokens == 2
    assert not gradient.any()


def test_forbidden_target_costs_infinity() -> None:
    masks = torch.ones(1, 1, 8, dtype=torch.bool)
    masks[0, 0, 5] = False
    assert loss_sums(torch.randn(1, 1, 8), torch.tensor([[5]]), constraint_masks=masks).loss == torch.inf


def test_zero_confidence_with_masks_is_not_nan() -> None:
    masks = torch.ones(1, 1, 8, dtype=torch.bool)
    masks[0, 0, 6] = False
    logits = torch.randn(1, 1, 8, requires_grad=True)
    sums = loss_sums(logits, torch.tensor([[5]]), constraint_masks=masks, conf=torch.zeros(1))
    (gradient,) = torch.autograd.grad(sums.loss, logits)
    assert sums.loss.item() == 0.0 and not gradient.any()


def test_range_equals_a_mask_with_the_same_ids() -> None:
    logits, target = torch.randn(2, 3, 12), torch.tensor([[6, 8, EOS], [7, EOS, PAD]])
    masks = torch.zeros(2, 3, 12, dtype=torch.bool)
    masks[..., :4] = masks[..., 6:9] = True
    by_range = loss_sums(logits, target, constraint_range="6,9")
    by_mask = loss_sums(logits, target, constraint_masks=masks)
    torch.testing.assert_close(by_range.loss, by_mask.loss)


def test_range_that_begins_among_the_special_ids_counts_them_once() -> None:
    logits, target = torch.randn(1, 2, 8), torch.tensor([[5, EOS]])
    torch.testing.assert_close(
        loss_sums(logits, target, constraint_range="1,6").loss, loss_sums(logits[..., :6], target).loss
    )


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits, target = torch.randn(2, 3, 50).bfloat16(), torch.tensor([[6, 8, EOS], [7, EOS, PAD]])
    loss = loss_sums(logits, target).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_sums(logits.float(), target).loss)


def test_logits_without_padding_and_constraints_are_not_copied() -> None:
    logits, target = torch.randn(2, 3, 8), torch.tensor([[6, 5, EOS], [7, 4, EOS]])
    sizes = []
    original = torch.log_softmax

    def spy(rows: Tensor, **kwargs: Any) -> Tensor:
        sizes.append((rows.shape, rows.data_ptr() == logits.data_ptr()))
        return original(rows, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "log_softmax", spy)
        loss_sums(logits, target)
        target[0, 2] = PAD
        loss_sums(logits, target)
    assert sizes == [((6, 8), True), ((5, 8), False)]


def test_easy_tokens_are_kept_in_both_passes() -> None:
    logits = torch.zeros(2, 3, 8)
    target = torch.tensor([[4, 5, 6]] * 2)
    logits[0, [0, 1, 2], [4, 5, 6]] = torch.tensor([3.0, 1.0, 2.0])  # the first pass finds position 1 hardest
    logits[1, 1, 5] = 9.0  # what the second pass finds does not matter
    sums = loss_sums(logits, target, 0.0, drop_worst_ratio=0.3, use_rdrop=True, reg_alpha=0.0)
    log_probs = logits.log_softmax(-1)
    kept = [(row, position, int(target[row, position])) for row in (0, 1) for position in (0, 2)]
    assert sums.ntokens == 4
    torch.testing.assert_close(sums.loss, -sum((log_probs[index] for index in kept), torch.zeros(())))


def test_accuracy_counts_follow_the_constraints() -> None:
    logits = torch.zeros(1, 4, 10)
    logits[0, 0, 9] = 5.0  # forbidden by the range, which makes 5 the best
    logits[0, 0, 5] = 4.0
    logits[0, 1, 6] = 5.0
    logits[0, 2, 7] = 5.0
    target = torch.tensor([[5, 6, EOS, PAD]])
    assert accuracy_counts(token_rows(logits, target, pad=PAD, eos=EOS)) == (1, 3)
    assert accuracy_counts(token_rows(logits, target, pad=PAD, eos=EOS, constraint_range="5,8")) == (2, 3)
    masks = torch.ones(1, 4, 10, dtype=torch.bool)
    masks[0, 0, 9] = masks[0, 2, 7] = False
    masks[0, 2, [0, 1]] = False
    assert accuracy_counts(token_rows(logits, target, pad=PAD, eos=EOS, constraint_masks=masks)) == (3, 3)
    rows = token_rows(logits, target, pad=PAD, eos=EOS, ignore_prefix_size=1, ignore_eos=True)
    assert accuracy_counts(rows) == (1, 1)


@pytest.mark.parametrize(
    "options, flag",
    [
        ({"epsilon": 1.0}, "--label-smoothing"),
        ({"epsilon": -0.1}, "--label-smoothing"),
        ({"drop_worst_ratio": 1.0}, "--drop-worst-ratio"),
        ({"drop_worst_ratio": -0.2}, "--drop-worst-ratio"),
        ({"drop_best_ratio": 1.0}, "--drop-best-ratio"),
        ({"log_end": 1.5}, "--log-end"),
        ({"ignore_prefix_size": -1}, "--ignore-prefix-size"),
        ({"constraint_range": "5"}, "--constraint-range"),
        ({"constraint_range": "5,six"}, "--constraint-range"),
        ({"constraint_range": "7,5"}, "--constraint-range"),
        ({"constraint_range": "1,2,3"}, "--constraint-range"),
    ],
)
def test_bad_option_is_named(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        check_loss_options(**options)
    with pytest.raises(ValueError, match=flag):
        loss_sums(torch.zeros(1, 1, 8), torch.tensor([[5]]), **options)


def test_range_must_fit_vocabulary_and_targets() -> None:
    with pytest.raises(ValueError, match="--constraint-range 5,9 ends beyond the vocabulary of 8"):
        loss_sums(torch.zeros(1, 1, 8), torch.tensor([[5]]), constraint_range="5,9")
    with pytest.raises(ValueError, match="Target id 7 is outside --constraint-range 5,7"):
        loss_sums(torch.zeros(1, 1, 8), torch.tensor([[7]]), constraint_range="5,7")


def test_rdrop_needs_pairs() -> None:
    with pytest.raises(ValueError, match="--use-rdrop"):
        loss_sums(torch.zeros(3, 1, 8), torch.full((3, 1), 5), use_rdrop=True)
