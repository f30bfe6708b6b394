"""``packed_linear``: equal to the dense product, by reference and best backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.ops.packed import packed_linear, reference
from nmsparse.packed import PackedWeight

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def by_reference(x, weight, bias=None):
    return reference.packed_linear_reference(x, weight, bias)


both = pytest.mark.parametrize("product", [packed_linear, by_reference])


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pruned(*shape, dtype=torch.float32, seed=0):
    weight = random(*shape, dtype=dtype, seed=seed)
    return torch.where(random(*shape, seed=seed + 1) < 0, weight, 0)


def assert_product(found, x, weight, bias=None):
    expected = x.double() @ weight.double().t()
    expected = expected if bias is None else expected + bias.double()
    scale = expected.abs().max().item() if expected.numel() else 0.0
    tolerance = TOLERANCE[x.dtype] * max(scale, 1.0)
    assert found.dtype is x.dtype
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=tolerance)


@both
def test_by_hand(product):
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, -3.0, 0.0]])
    x = torch.tensor([[1.0, 10.0, 100.0]])
    y = product(x, PackedWeight.pack(weight), torch.tensor([0.5, 0.0]))
    assert y.tolist() == [[201.5, -30.0]]


@both
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 63])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_equals_the_dense_product(product, dtype, tokens, with_bias, poisoned_memory):
    x, weight = random(tokens, 130, dtype=dtype), pruned(33, 130, dtype=dtype, seed=2)
    bias = random(33, dtype=dtype, seed=3) if with_bias else None
    found = product(x, PackedWeight.pack(weight), bias)
    assert found.shape == (tokens, 33)
    assert_product(found, x, weight, bias)


@both
@given(st.integers(0, 4), st.integers(0, 9), st.integers(0, 140), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_any_small_shape(product, tokens, out_features, in_features, seed):
    x = random(tokens, in_features, seed=seed)
    weight = pruned(out_features, in_features, seed=seed)
    assert_product(product(x, PackedWeight.pack(weight)), x, weight)


def test_blocks_of_rows_do_not_show(monkeypatch):
    x, weight = random(3, 70), pruned(9, 70)
    monkeypatch.setattr(reference, "_BLOCK", 150)
    assert_product(by_reference(x, PackedWeight.pack(weight)), x, weight)


@both
def test_sums_are_accumulated_in_float32(product):
    # In bfloat16 1024 + 1 = 1024, so 1s added one by one to 1024 would be lost.
    x = torch.ones(1, 1024, dtype=torch.bfloat16)
    weight = torch.ones(1, 1024, dtype=torch.bfloat16)
    weight[0, 0] = 1024
    y = product(x, PackedWeight.pack(weight))
    assert y.item() == torch.tensor(2047.0).bfloat16().item()


@both
def test_inputs_are_not_modified(product):
    x, bias = random(3, 16), random(5)
    weight = PackedWeight.pack(pruned(5, 16))
    tensors = [x, bias, weight.bits, weight.values, weight.offsets]
    before = [tensor.clone() for tensor in tensors]
    product(x, weight, bias).fill_(7.0)
    assert all(map(torch.equal, before, tensors))


@pytest.mark.parametrize("shape", [(8,), (2, 9), (1, 2, 8)], ids=str)
def test_wrong_input_shape(shape):
    weight = PackedWeight.pack(torch.ones(4, 8))
    with pytest.raises(ValueError, match=r"packed_linear: x has .* = \[T, 8\]"):
        packed_linear(torch.ones(shape), weight)


@pytest.mark.parametrize("shape", [(3,), (1, 4), ()], ids=str)
def test_wrong_bias_shape(shape):
    weight = PackedWeight.pack(torch.ones(4, 8))
    with pytest.raises(ValueError, match=r"bias has shape .*\. Expected \[4\]"):
        packed_linear(torch.ones(2, 8), weight, torch.ones(shape))


def test_dtypes_must_agree():
    weight = PackedWeight.pack(torch.ones(4, 8).bfloat16())
    with pytest.raises(TypeError, match=r"x is torch\.float32, the weight torch\.bfl"):
        packed_linear(torch.ones(2, 8), weight)
