"""The chunked loss against the plain one: values, gradients, precisions, and what it never holds."""

from typing import Any

import pytest
import torch
from torch import Tensor

from criterions import linear_cross_entropy as module
from criterions.linear_cross_entropy import linear_cross_entropy
from criterions.losses import label_smoothed_cross_entropy

PAD, EOS = 1, 2
B, T, C, V = 3, 5, 6, 30
TARGET = torch.tensor([[5, 7, 9, 20, EOS], [6, 8, EOS, PAD, PAD], [4, EOS, PAD, PAD, PAD]])
OPTIONS: list[dict[str, Any]] = [
    {},
    {"epsilon": 0.0},
    {"constraint_range": "4,25"},
    {"conf": torch.tensor([0.5, 2.0, 0.0])},
    {"ignore_prefix_size": 1, "ignore_eos": True},
    {"drop_worst_ratio": 0.4},
    {"drop_worst_ratio": 0.4, "constraint_range": "4,25", "conf": torch.tensor([0.5, 2.0, 1.0])},
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 4 * V)


def inputs(dtype: torch.dtype = torch.float64, width: int = V, trained: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(B, T, C, generator=generator, dtype=torch.float64)
    weight = torch.randn(width, C, generator=generator, dtype=torch.float64)
    return features.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(trained)


def chunked(features: Tensor, weight: Tensor, target: Tensor = TARGET, **options: Any) -> Any:
    return linear_cross_entropy(features, weight, target, pad=PAD, eos=EOS, **{"epsilon": 0.1, **options})


def plain(features: Tensor, weight: Tensor, target: Tensor = TARGET, **options: Any) -> Any:
    logits = torch.nn.functional.linear(features, weight)
    return label_smoothed_cross_entropy(logits, target, pad=PAD, eos=EOS, **{"epsilon": 0.1, **options})


def gradients(sums: Any, *tensors: Tensor, factor: float = 1.0) -> tuple[Tensor, ...]:
    return torch.autograd.grad(factor * sums.loss, tensors)


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_plain_loss(options: dict[str, Any]) -> None:
    features, weight = inputs()
    ours, theirs = chunked(features, weight, **options), plain(features, weight, **options)
    torch.testing.assert_close((ours.loss, ours.nll_loss), (theirs.loss, theirs.nll_loss))
    assert ours.ntokens == theirs.ntokens and not ours.nll_loss.requires_grad
    ours_grad = gradients(ours, features, weight, factor=3.0)
    torch.testing.assert_close(ours_grad, gradients(theirs, features, weight, factor=3.0))


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_matches_finite_differences(options: dict[str, Any]) -> None:
    features, weight = inputs()
    assert torch.autograd.gradcheck(lambda f, w: chunked(f, w, **options).loss, (features, weight))


def test_float32_stays_within_rounding_at_many_ids() -> None:
    """Of the sum in float64: the plain loss in float32 is further from it on some processors."""
    features, weight = inputs(torch.float32, width=20000)
    exact = [x.detach().double().requires_grad_() for x in (features, weight)]
    ours, theirs = chunked(features, weight), plain(*exact)
    torch.testing.assert_close(ours.loss.double(), theirs.loss, rtol=1e-6, atol=0)
    for one, other in zip(gradients(ours, features, weight), gradients(theirs, *exact), strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_about_as_exact_as_the_plain_loss(dtype: torch.dtype) -> None:
    features, weight = inputs(dtype)
    exact = [x.detach().double().requires_grad_() for x in (features, weight)]
    true = gradients(plain(*exact), *exact)
    ours, theirs = chunked(features, weight), plain(features, weight)
    assert ours.loss.dtype == torch.float32
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=0)
    for grad, other, reference in zip(
        gradients(ours, features, weight), gradients(theirs, features, weight), true, strict=True
    ):
        assert grad.dtype == dtype
        assert (grad - reference).norm() <= 1.5 * (other - reference).norm()


def test_float16_keeps_the_gradients_of_smoothing() -> None:
    """Each of many ids gets epsilon / V, which float16 alone would round to a few multiples of its smallest number."""
    features, weight = inputs(torch.float16, width=59457)
    exact = [x.detach().double().requires_grad_() for x in (features, weight)]
    scale = 1024.0  # what a loss scaler does
    (grad,) = gradients(chunked(features, weight), weight, factor=scale)
    (true,) = gradients(plain(*exact), exact[1], factor=scale)
    rare = slice(100, None)
    assert (grad[rare] - true[rare]).norm() < 3e-3 * true[rare].norm()


@pytest.mark.parametrize("options", [{}, {"constraint_range": "4,25"}])
def test_autocast_takes_the_product_in_its_precision(options: dict[str, Any]) -> None:
    features, weight = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = chunked(features, weight, **options), plain(features, weight, **options)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=0)
    assert ours.loss.dtype == torch.float32 and abs(ours.loss - chunked(features, weight, **options).loss) > 1e-5
    for one, other in zip(gradients(ours, features, weight), gradients(theirs, features, weight), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_frozen_weight_gets_no_gradient() -> None:
    features, weight = inputs(trained=False)
    (grad,) = gradients(chunked(features, weight), features)
    torch.testing.assert_close(grad, gradients(plain(features, weight), features)[0])


def test_without_gradients_nothing_is_kept() -> None:
    features, weight = inputs()
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_logits_grad", None)  # calling it would fail
        sums = chunked(features, weight)
    assert not sums.loss.requires_grad
    torch.testing.assert_close(sums.loss, plain(features, weight).loss)


def test_only_counted_tokens_are_projected_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    original = torch.log_softmax

    def spy(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append(tuple(logits.shape))
        return original(logits, *args, **kwargs)

    monkeypatch.setattr(torch, "log_softmax", spy)
    chunked(*inputs())
    assert shapes == [(4, V), (4, V), (2, V)]  # 10 of the 15 positions count
    shapes.clear()
    chunked(*inputs(), constraint_range="4,24")
    assert shapes == [(5, 24), (5, 24)]


def test_padding_alone_gives_zero_and_zero_gradients() -> None:
    features, weight = inputs()
    for options in ({}, {"drop_worst_ratio": 0.5}, {"constraint_range": "5,7"}, {"conf": torch.ones(B)}):
        sums = chunked(features, weight, torch.full((B, T), PAD), **options)
        assert (sums.loss.item(), sums.nll_loss.item(), sums.ntokens) == (0.0, 0.0, 0)
        assert not any(grad.any() for grad in gradients(sums, features, weight))


def test_backward_may_run_twice_and_the_loss_be_scaled_in_place() -> None:
    features, weight = inputs()
    sums = chunked(features, weight)
    first = torch.autograd.grad(sums.loss, (features, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(sums.loss, (features, weight)), first)
    loss = chunked(features, weight).loss
    loss *= 0
    assert not torch.autograd.grad(loss, features)[0].any()


def test_bad_options_and_targets_are_named() -> None:
    with pytest.raises(ValueError, match="--label-smoothing"):
        chunked(*inputs(), epsilon=1.0)
    with pytest.raises(ValueError, match="Target id 20 is outside --constraint-range 4,15"):
        chunked(*inputs(), constraint_range="4,15")
    with pytest.raises(ValueError, match="ends beyond the vocabulary of 30"):
        chunked(*inputs(), constraint_range="4,31")
