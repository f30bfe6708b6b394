"""``linear``: equal to the dense product of the sparsified activation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.ops.linear import linear
from nmsparse.ops.sparsify import CompactActivation, compact, sparsify
from nmsparse.pattern import NMPattern, parse_pattern

# Relative to the largest output: one rounding of the result to the dtype.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected_product(x, pattern, weight, bias=None):
    """Multiply in float64 what ``sparsify`` leaves."""
    product = sparsify(x, pattern).double() @ weight.double()
    return product if bias is None else product + bias.double()


def assert_close(found, expected):
    scale = expected.abs().max().item() if expected.numel() else 0.0
    tolerance = TOLERANCE[found.dtype] * max(scale, 1.0)
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=tolerance)


def test_by_hand():
    x = torch.tensor([[4.0, -3.0, 1.0, 2.0], [0.5, 3.0, -1.0, 2.0]])
    weight = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])
    y = linear(compact(x, NMPattern(2, 4)), weight, torch.tensor([0.5, 0.0]))
    assert y.tolist() == [[-1.5, -20.0], [14.5, 140.0]]


@pytest.mark.parametrize("pattern", ["1:4", "2:4", "6:8", "8:16", "3:7", "4:4", "50%"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_equals_the_dense_product(pattern, dtype, with_bias):
    pattern = parse_pattern(pattern)
    x = random(5, 112, dtype=dtype, seed=1)
    weight = random(112, 33, dtype=dtype, seed=2)
    bias = random(33, dtype=dtype, seed=3) if with_bias else None
    y = linear(compact(x, pattern), weight, bias)
    assert y.dtype is dtype
    assert y.shape == (5, 33)
    assert_close(y, expected_product(x, pattern, weight, bias))


@pytest.mark.parametrize("tokens", [0, 1, 2, 17])
@pytest.mark.parametrize("out_features", [1, 3, 64])
def test_shapes(tokens, out_features):
    x, weight = random(tokens, 16), random(16, out_features)
    y = linear(compact(x, NMPattern(2, 4)), weight)
    assert y.shape == (tokens, out_features)
    assert_close(y, expected_product(x, NMPattern(2, 4), weight))


@given(st.integers(0, 4), st.integers(1, 5), st.integers(1, 9), st.integers(0, 1 << 16))
@settings(deadline=None)
def test_any_small_shape(tokens, groups, out_features, seed):
    x, weight = random(tokens, groups * 8, seed=seed), random(groups * 8, out_features)
    y = linear(compact(x, NMPattern(3, 8)), weight)
    assert_close(y, expected_product(x, NMPattern(3, 8), weight))


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_no_element_is_left_unwritten(poisoned_memory, tokens, with_bias):
    x, weight = random(tokens, 64), random(64, 7)
    bias = random(7) if with_bias else None
    y = linear(compact(x, NMPattern(8, 16)), weight, bias)
    assert_close(y, expected_product(x, NMPattern(8, 16), weight, bias))


def test_dropped_channels_are_not_read():
    weight = random(8, 5)
    x = torch.tensor([[0.0, 9.0, 8.0, 0.0, 7.0, 0.0, 0.0, 6.0]])
    expected = linear(compact(x, NMPattern(2, 4)), weight)
    weight[[0, 3, 5, 6]] = math.nan
    assert torch.equal(linear(compact(x, NMPattern(2, 4)), weight), expected)


def test_sums_are_accumulated_in_float32():
    # In bfloat16 1024 + 1 = 1024, so 1s added one by one to 1024 would be lost.
    x = torch.ones(1, 1024, dtype=torch.bfloat16)
    weight = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight[0] = 1024
    y = linear(compact(x, NMPattern(4, 4)), weight)
    assert y.item() == torch.tensor(2047.0).bfloat16().item()


def test_weight_may_be_a_transposed_view():
    x, stored = random(3, 16), random(5, 16)
    y = linear(compact(x, NMPattern(2, 4)), stored.t())
    assert_close(y, expected_product(x, NMPattern(2, 4), stored.t()))


def test_inputs_are_not_modified():
    packed = compact(random(3, 16), NMPattern(2, 4))
    weight, bias = random(16, 5), random(5)
    before = [t.clone() for t in (packed.values, packed.indices, weight, bias)]
    linear(packed, weight, bias).fill_(7.0)
    after = [packed.values, packed.indices, weight, bias]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("shape", [(5, 16), (16,), (1, 16, 5)], ids=str)
def test_wrong_weight_shape_shows_the_remedy(shape):
    with pytest.raises(
        ValueError,
        match=r"linear: weight has shape \(.*\)\. Expected \[K, O\] = \[16, O\], "
        r"K-major: pass weight\.t\(\)\.contiguous\(\)",
    ):
        linear(compact(random(2, 16), NMPattern(2, 4)), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(4,), (1, 5), ()], ids=str)
def test_wrong_bias_shape(shape):
    with pytest.raises(ValueError, match=r"linear: bias has shape .*\. Expected \[5\]"):
        linear(
            compact(random(2, 16), NMPattern(2, 4)),
            torch.zeros(16, 5),
            torch.zeros(shape),
        )


def test_takes_any_compact_activation():
    x = CompactActivation(
        torch.tensor([[2.0, 3.0]]), torch.tensor([[0, 3]], dtype=torch.int32), 4
    )
    weight = torch.arange(8.0).view(4, 2)
    assert linear(x, weight).tolist() == [[18.0, 23.0]]
