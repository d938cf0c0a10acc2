"""The one attention against the plain formula: values and gradients, padding, shared keys, biases."""

import pytest
import torch

from models.ofa.attention import MultiheadAttention, attend, fold_padding

B, H, T, S, D = 3, 2, 5, 7, 8


def plain(q, k, v, bias, padding):
    scores = q @ k.transpose(-1, -2) + bias
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    return scores.softmax(-1) @ v


def tensors(rows=B, bias_rows=1):
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, H, T, D), (B, H, S, D), (B, H, S, D), (bias_rows, H, T, S)]
    q, k, v, bias = (torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, -2:] = True
    return q, k, v, bias, padding


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bias_rows", [1, B])
def test_attend_equals_the_plain_formula(padded, bias_rows):
    q, k, v, bias, padding = tensors(bias_rows=bias_rows)
    kv = fold_padding(k, v, padding) if padded else (k, v)
    out = attend(q, *kv, bias)
    expected = plain(q, k, v, bias, padding if padded else None)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(out)
    ours = torch.autograd.grad((out * weight).sum(), (q, k, v, bias), retain_graph=True)
    reference = torch.autograd.grad((expected * weight).sum(), (q, k, v, bias))
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("bias_rows", [1, B, "all"])
def test_rows_of_a_sample_share_its_keys(groups, bias_rows):
    rows = B * groups
    q, k, v, bias, padding = tensors(rows, rows if bias_rows == "all" else bias_rows)
    out = attend(q, *fold_padding(k, v, padding), bias)
    repeated = [x.repeat_interleave(groups, 0) for x in (k, v, padding)]
    wide = bias if bias.size(0) in (1, rows) else bias.repeat_interleave(groups, 0)
    torch.testing.assert_close(out, plain(q, repeated[0], repeated[1], wide, repeated[2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_padding_has_no_weight_in_half_precision(dtype):
    q, k, v, bias, padding = (x.detach() for x in tensors())
    spoiled = v.clone()
    spoiled[1, :, -2:] = 1e4
    kinds = [attend(q.to(dtype), *fold_padding(k.to(dtype), x.to(dtype), padding), bias).float() for x in (v, spoiled)]
    assert torch.equal(*kinds) and kinds[0].isfinite().all()


def test_head_scale_and_query_scale():
    module = MultiheadAttention(H * D, H, scale_factor=2.0, dropout=0.0, scale_heads=True)
    assert module.scale == (D * 2) ** -0.5
    x = torch.randn(2, T, H * D)
    with torch.no_grad():
        module.c_attn.copy_(torch.tensor([0.0, 0.0]))
        out = module(x, *module.keys_values(x))
    torch.testing.assert_close(out, module.out_proj.bias.expand_as(out))
