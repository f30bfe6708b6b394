"""C++ ``sparsify`` and ``compact``: the reference's selection, to the bit.

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
    at_the_end,
    bits,
    expected_keep,
    hostile_memory,
    kernels,
    random,
    threads,
)

from nmsparse.ops.sparsify import Correction
from nmsparse.ops.sparsify.cpu import compact_cpu, sparsify_cpu
from nmsparse.ops.sparsify.reference import compact_reference, sparsify_reference
from nmsparse.pattern import NMPattern, parse_pattern

MAGNITUDE = "magnitude"


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with kernels():
        yield


def tricky(tokens, channels, dtype, seed=0):
    """Return rows of ties, of zeros of both signs, and of any bits there are."""
    x = (random(tokens, channels, seed=seed) * 2).round().div(2).to(dtype)
    integer = bits(x).dtype
    info = torch.iinfo(integer)
    generator = torch.Generator().manual_seed(seed)
    anything = torch.randint(
        info.min, info.max, x.shape, generator=generator, dtype=integer
    ).view(dtype)
    # NaN of one kind only: which of two is kept where there is no room for both, no
    # rule says.
    anything = torch.where(anything.isnan(), torch.nan, anything)
    tiny = torch.finfo(dtype).smallest_normal
    x[1::7] = anything[1::7]
    x[2::7] = 0.0
    x[2::7, ::3] = -0.0
    x[3::7] *= tiny / 4
    x[4::7, ::5] = torch.nan
    x[4::7, 1::7] = torch.inf
    x[5::7] = -1.0
    x[6::7] = torch.nan
    return x


def assert_selected(x, pattern):
    """Check both ops on guarded memory against the rule and the reference."""
    keep = expected_keep(x, pattern)
    with hostile_memory():
        dense = sparsify_cpu(x, pattern, MAGNITUDE)
        packed = compact_cpu(x, pattern, MAGNITUDE)
    assert dense.dtype is packed.values.dtype is x.dtype
    assert packed.indices.dtype is torch.int32
    assert torch.equal(bits(dense), torch.where(keep, bits(x), 0))
    indices = packed.indices.long()
    assert torch.equal(indices, keep.nonzero()[:, 1].view(packed.values.shape))
    # Integers, because torch's gather makes one bfloat16 NaN of all.
    assert torch.equal(bits(packed.values), bits(x).gather(1, indices))
    reference = compact_reference(x, pattern, MAGNITUDE)
    assert torch.equal(packed.indices, reference.indices)
    expected = sparsify_reference(x, pattern, MAGNITUDE)
    assert torch.equal(dense.isnan(), expected.isnan())
    assert torch.equal(bits(dense.nan_to_num()), bits(expected.nan_to_num()))


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_reference(dtype, text):
    pattern = parse_pattern(text)
    group = getattr(pattern, "m", 8)
    # Around the 64-byte vectors of groups, and the 32 channels a store takes at once.
    for groups in (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 67):
        x = tricky(21, groups * group, dtype, seed=groups)
        assert_selected(at_the_end(x), pattern)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_tokens_and_threads(dtype, count):
    x = tricky(33, 96, dtype)
    with threads(count):
        for tokens in range(34) if count == 1 else (0, 1, 2, 3, 4, 5, 32, 33):
            assert_selected(x[:tokens], NMPattern(8, 16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_does_not_see_the_others(dtype):
    x = tricky(33, 160, dtype)
    whole = compact_cpu(x, NMPattern(16, 32), MAGNITUDE)
    for t in range(33):
        alone = compact_cpu(x[t : t + 1], NMPattern(16, 32), MAGNITUDE)
        assert torch.equal(bits(alone.values[0]), bits(whole.values[t]))
        assert torch.equal(alone.indices[0], whole.indices[t])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout(dtype):
    x = tricky(64, 64, dtype)
    for view in (
        x.t(),
        x[:, ::2],
        x[::3, 8:40],
        x[:1].expand(5, -1),
        at_the_end(x[:9], row=71),
        x[:, :1].t(),
    ):
        assert_selected(view, NMPattern(2, 4) if view.shape[1] > 1 else NMPattern(1, 1))
    many = x.view(4, 16, 64).transpose(0, 1)
    dense = sparsify_cpu(many, NMPattern(2, 4), MAGNITUDE)
    keep = expected_keep(many.contiguous(), NMPattern(2, 4))
    assert torch.equal(bits(dense), torch.where(keep, bits(many), 0))
    assert sparsify_cpu(x[0], NMPattern(2, 4), MAGNITUDE).shape == (64,)


def test_a_nan_of_any_kind_is_kept_to_the_bit():
    kinds = torch.arange(-128, 0, dtype=torch.int16) | 0x7F80  # -inf, then NaN
    kinds = torch.cat([kinds[1:], kinds[1:] & 0x7FFF])
    x = torch.zeros(len(kinds), 8, dtype=torch.int16)
    x[torch.arange(len(kinds)), torch.arange(len(kinds)) % 8] = kinds
    x = x.view(torch.bfloat16)
    for pattern in (NMPattern(1, 8), NMPattern(1, 4), NMPattern(8, 8)):
        dense = sparsify_cpu(x, pattern, MAGNITUDE)
        assert torch.equal(bits(dense), bits(x))
        values = compact_cpu(x, pattern, MAGNITUDE).values
        assert torch.equal(bits(values.nan_to_num(0)).count_nonzero(), torch.tensor(0))
        assert torch.equal(bits(values[values.isnan()]), kinds)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonzeros_are_counted(dtype, count):
    for text in ("8:16", "3:5", "50%"):
        x, total = tricky(13, 80, dtype), torch.tensor([5])
        with threads(count):
            dense = sparsify_cpu(x, parse_pattern(text), MAGNITUDE, total)
            compact_cpu(x, parse_pattern(text), MAGNITUDE, nonzeros=total)
        assert int(total) == 5 + 2 * int((bits(dense) << 1).count_nonzero())


@st.composite
def cases(draw):
    m = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 16, 32]))
    pattern = NMPattern(draw(st.integers(1, m)), m)
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.integers(0, 5)), draw(st.integers(1, 9)) * m
    return tricky(*shape, dtype, seed=draw(st.integers(0, 1 << 20))), pattern


@given(cases())
@settings(deadline=None, max_examples=60)
def test_any_small_case(case):
    x, pattern = case
    before = bits(x).clone()
    assert_selected(x, pattern)
    assert torch.equal(bits(x), before), "the input was modified"


def test_empty_tokens():
    for shape in ((0, 16), (3, 0), (0, 0)):
        x = torch.zeros(shape)
        correction = Correction(variance=True)
        found = compact_cpu(x, NMPattern(2, 4), MAGNITUDE, correction)
        assert found.values.shape == (shape[0], shape[1] // 2)
        assert found.scale.tolist() == [1.0] * shape[0]
        assert sparsify_cpu(x, NMPattern(2, 4), MAGNITUDE).shape == shape


def test_results_stay_where_the_input_is():
    # vLLM loads models under another default device.
    with torch.device("meta"):
        x = torch.ones(2, 8, device="cpu")
        assert sparsify_cpu(x, NMPattern(2, 4), MAGNITUDE).sum().item() == 8.0
        found = compact_cpu(x, NMPattern(2, 4), MAGNITUDE, Correction(variance=True))
        assert {t.device.type for t in (found.values, found.indices)} == {"cpu"}
