"""C++ products over O-major weights, packed and dense: exact within their rounding.

Every ISA level runs this file: see ``test_cpu_isa.py``.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cpu_kernels import (
    DTYPES,
    PATTERNS,
    assert_rounded,
    at_the_end,
    bits,
    hostile_memory,
    kernels,
    random,
    threads,
    ulps,
)

from nmsparse.keep import select_keep
from nmsparse.ops.packed.cpu import packed_linear_cpu, stream_o_major
from nmsparse.ops.packed.reference import packed_linear_reference
from nmsparse.packed import PADDING, PackedWeight
from nmsparse.pattern import parse_pattern


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with kernels():
        yield


def pruned(outputs, channels, dtype, seed=1, *, density=0.5):
    weight = random(outputs, channels, dtype=dtype, seed=seed)
    stays = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(stays < density, weight, 0)


def packed(weight):
    """Pack into guarded memory, with NaN where readable zeros should be."""
    made = PackedWeight.pack(weight)
    values = at_the_end(made.values)
    values[made.stored :] = torch.nan
    assert len(values) == made.stored + PADDING
    return PackedWeight(
        at_the_end(made.bits), values, at_the_end(made.offsets), made.in_features
    )


def exact(x, weight, bias=None):
    """Return the product in float64, and the sum of its terms without their signs."""
    wide, rows = x.double(), weight.double().t()
    own = torch.zeros(weight.shape[0]) if bias is None else bias
    return wide @ rows + own.double(), wide.abs() @ rows.abs() + own.double().abs()


def both(x, weight, bias=None):
    """Return the products with the packed and with the dense weight."""
    with hostile_memory():
        return (
            packed_linear_cpu(x, packed(weight), bias),
            stream_o_major(x, at_the_end(weight, row=weight.shape[1] + 5), bias),
        )


def assert_products(x, weight, bias=None):
    for found in both(x, weight, bias):
        assert found.dtype is x.dtype
        assert_rounded(found, *exact(x, weight, bias), weight.shape[1] + 1)


@pytest.mark.parametrize("channels", [6144, 6145, 6208, 14336])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_token_that_fills_the_cache(dtype, channels):
    # Beyond 12 KB a token meets four rows at a time instead of one.
    weight = pruned(21, channels, dtype)
    assert_products(random(1, channels, dtype=dtype, seed=5), weight)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_tokens(dtype, count):
    # Blocks of 8 tokens; of 1, 2 or 4 rows; parts of 16 rows a thread.
    for outputs in (1, 7, 31, 32, 33, 65):
        weight = pruned(outputs, 70, dtype)
        made, dense = packed(weight), at_the_end(weight)
        x = at_the_end(random(33, 70, dtype=dtype), row=75)
        whole, magnitude = exact(x, weight)
        for tokens in range(34) if count == 1 else (0, 1, 2, 4, 5, 8, 9, 33):
            with hostile_memory(), threads(count):
                results = (
                    packed_linear_cpu(x[:tokens], made, None),
                    stream_o_major(x[:tokens], dense, None),
                )
            for found in results:
                assert_rounded(found, whole[:tokens], magnitude[:tokens], 70)
        assert_rounded(packed_linear_reference(x, made, None), whole, magnitude, 70)


@pytest.mark.parametrize("channels", [1, 31, 63, 64, 65, 127, 128, 129, 192, 500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tail_of_channels(dtype, channels):
    weight = pruned(37, channels, dtype)
    bias = at_the_end(random(37, dtype=dtype, seed=3))
    for tokens in (1, 2, 4, 5, 11):
        assert_products(at_the_end(random(tokens, channels, dtype=dtype)), weight, bias)


@pytest.mark.parametrize("outputs", [200, 8193])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_outputs(dtype, outputs):
    weight = pruned(outputs, 33, dtype)
    for tokens in (1, 3, 9):
        assert_products(random(tokens, 33, dtype=dtype), weight)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pattern(dtype, text):
    pattern = parse_pattern(text)
    weight = random(19, 6 * getattr(pattern, "m", 20), dtype=dtype, seed=1)
    weight = torch.where(select_keep(weight.abs(), pattern), weight, 0)
    weight[::5] = 0.0  # rows that store nothing
    for tokens in (1, 3, 8):
        assert_products(random(tokens, weight.shape[1], dtype=dtype), weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_very_different_lengths(dtype):
    weight = random(40, 200, dtype=dtype, seed=1)
    for o in range(40):
        weight[o, o * 5 :] = 0.0
    weight[11, 64:128] = 0.0
    assert_products(random(4, 200, dtype=dtype), weight)
    assert_products(random(4, 200, dtype=dtype), weight.flip(0, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_one_sign_are_rounded_once(dtype):
    x, weight = random(9, 512, dtype=dtype).abs(), pruned(50, 512, dtype).abs()
    expected = exact(x, weight)[0].to(dtype)
    for found in both(x, weight):
        assert ulps(found, expected) <= (32 if dtype is torch.float32 else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alone_and_in_a_batch(dtype):
    # Rows and tokens are blocked by how many there are, so sums are split differently:
    # equal up to the rounding of float32, at every level.
    x, weight = random(8, 256, dtype=dtype), pruned(50, 256, dtype)
    magnitude = exact(x, weight)[1]
    alone = [both(x[t : t + 1], weight) for t in range(8)]
    for batch, single in zip(both(x, weight), zip(*alone, strict=True), strict=True):
        single = torch.cat(single)
        small = batch.double().abs() < magnitude / 64  # cancelled: no rule about ulps
        distance = ulps(batch.masked_fill(small, 0), single.masked_fill(small, 0))
        assert distance <= (2048 if dtype is torch.float32 else 1)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_of_nan_stays_alone(dtype, poison):
    x, weight = random(11, 100, dtype=dtype), pruned(35, 100, dtype)
    expected = both(x, weight)
    x[[0, 5, 10]] = poison
    others = [t for t in range(11) if t not in (0, 5, 10)]
    for found, before in zip(both(x, weight), expected, strict=True):
        assert torch.equal(found[others], before[others])
        assert not found[[0, 5, 10]].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_in_the_weight_stays_in_its_row(dtype):
    x, weight = random(6, 100, dtype=dtype), pruned(35, 100, dtype)
    expected = both(x, weight)
    weight[17, 99], weight[34, 0] = torch.nan, torch.inf
    others = [o for o in range(35) if o not in (17, 34)]
    for found, before in zip(both(x, weight), expected, strict=True):
        assert torch.equal(found[:, others], before[:, others])
        assert found[:, 17].isnan().all()
        assert found[:, 34].isinf().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unusual_layouts(dtype):
    x, weight = random(70, 6, dtype=dtype).t(), pruned(40, 70, dtype)
    assert_products(x, weight)
    assert_products(random(1, 70, dtype=dtype).expand(5, -1), weight)
    exactly = exact(x, weight)
    turned = weight.t().contiguous().t()
    assert_rounded(stream_o_major(x, turned, None), *exactly, 70)
    sliced = at_the_end(weight)[3:20]
    found = stream_o_major(x, sliced, None)
    assert_rounded(found, *exact(x, sliced), 70)
    part = packed(weight).rows(3, 20)
    assert_rounded(packed_linear_cpu(x, part, None), *exact(x, sliced), 70)
    column = random(9, 1, dtype=dtype, seed=2)
    assert_products(random(3, 1, dtype=dtype), column)


@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_empty(tokens, shape):
    bias = random(shape[0])
    for bias_or_none in (None, bias):
        for found in both(random(tokens, shape[1]), torch.zeros(shape), bias_or_none):
            expected = torch.zeros(tokens, shape[0]) + (
                0 if bias_or_none is None else bias
            )
            assert torch.equal(found, expected)


@given(
    st.sampled_from(DTYPES),
    st.tuples(st.integers(0, 10), st.integers(0, 40), st.integers(0, 140)),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.tuples(st.booleans(), st.integers(0, 1 << 16)),
)
@settings(deadline=None, max_examples=60)
def test_any_small_case(dtype, sizes, density, options):
    tokens, outputs, channels = sizes
    with_bias, seed = options
    x = random(tokens, channels, dtype=dtype, seed=seed)
    weight = pruned(outputs, channels, dtype, seed, density=density)
    bias = random(outputs, dtype=dtype, seed=seed) if with_bias else None
    inputs = [t for t in (x, weight, bias) if t is not None]
    before = [bits(t).clone() for t in inputs]
    assert_products(x, weight, bias)
    assert all(map(torch.equal, before, map(bits, inputs))), "an input was modified"
