"""C++ ``compact`` with corrections: shifts, factors and variance.

Every ISA level runs this file: see ``test_cpu_isa.py``.
"""

from __future__ import annotations

import pytest
import torch
from support.cpu_kernels import (
    DTYPES,
    at_the_end,
    bits,
    expected_keep,
    hostile_memory,
    kernels,
    random,
)

from nmsparse.ops.linear.cpu import linear_cpu
from nmsparse.ops.sparsify import Correction
from nmsparse.ops.sparsify.cpu import compact_cpu
from nmsparse.ops.sparsify.reference import compact_reference
from nmsparse.pattern import NMPattern, parse_pattern

MAGNITUDE = "magnitude"


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with kernels():
        yield


def parts(channels, tokens, chosen, seed=9):
    """Return the chosen parts of a correction."""
    made = {
        "factor": random(channels, seed=seed).abs(),
        "channel_shift": random(channels, seed=seed + 1),
        "token_shift": random(tokens, seed=seed + 2),
    }
    given = {name: made[name] for name in chosen if name in made}
    return Correction(variance="variance" in chosen, **given)


@pytest.mark.parametrize(
    "chosen",
    ["factor", "channel_shift", "token_shift", "variance", "factor token_shift",
     "factor channel_shift token_shift variance"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_corrections_agree_with_the_reference(dtype, chosen):
    for text in ("2:4", "8:16", "16:32", "3:5", "50%", "16:16"):
        pattern = parse_pattern(text)
        x = random(9, 160, dtype=dtype, seed=4)
        correction = parts(160, 9, chosen.split())
        with hostile_memory():
            found = compact_cpu(at_the_end(x), pattern, MAGNITUDE, correction)
        expected = compact_reference(x, pattern, MAGNITUDE, correction)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(bits(found.values), bits(expected.values))
        if correction.variance:
            torch.testing.assert_close(found.scale, expected.scale, rtol=1e-6, atol=0)
        else:
            assert found.scale is expected.scale is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shifted_values_are_rounded_as_torch_rounds(dtype):
    # At, beside and halfway between all numbers of 16 bits, and any bits there are.
    number = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    near = torch.cat([bits(number.view(t).float()) for t in DTYPES[1:]])
    halves = [near + step for step in (-1, 0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000)]
    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(-(1 << 31), 1 << 31, (1 << 18,), generator=generator)
    tiny = torch.arange(1, 1 << 12) * 2.0**-27  # float16 has steps of 2^-24 there
    wanted = torch.cat([*halves, anything.int(), bits(tiny)]).view(torch.float32)
    wanted = wanted[wanted != 0]  # 0 - 0 is no -0.0
    wanted = wanted[: len(wanted) // 16 * 16]
    x = torch.zeros(1, len(wanted), dtype=dtype)
    correction = Correction(channel_shift=-wanted)
    found = compact_cpu(x, NMPattern(16, 16), MAGNITUDE, correction).values[0]
    nan = wanted.isnan()
    assert torch.equal(found.isnan(), nan)
    assert torch.equal(bits(found[~nan]), bits(wanted[~nan].to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_factor_is_a_choice_on_x_times_factor(dtype):
    norm = random(200, 64, seed=7).norm(dim=0)
    x = random(5, 64, dtype=dtype, seed=8)
    correction = Correction(factor=norm)
    found = compact_cpu(x, NMPattern(8, 16), MAGNITUDE, correction)
    keep = expected_keep(x.float() * norm, NMPattern(8, 16))
    assert torch.equal(found.indices.long(), keep.nonzero()[:, 1].view(5, 32))
    assert torch.equal(bits(found.values), bits(x).gather(1, found.indices.long()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_variance_of_kept_values_is_restored(dtype):
    x = random(7, 160, dtype=dtype, seed=5)
    shift = random(7, seed=6)
    correction = Correction(token_shift=shift, variance=True)
    found = compact_cpu(x, NMPattern(8, 16), MAGNITUDE, correction)
    shifted = x.float() - shift[:, None]
    keep = expected_keep(shifted, NMPattern(8, 16))
    kept = torch.where(keep, shifted, 0).double() * found.scale.double()[:, None]
    wanted = shifted.double().var(dim=1, correction=0)
    torch.testing.assert_close(
        kept.var(dim=1, correction=0), wanted, rtol=1e-6, atol=0.0
    )


@pytest.mark.parametrize("value", [0.0, 1 / 3, -7.7, 1e30, torch.nan, torch.inf])
@pytest.mark.parametrize("channels", [8, 4096, 4100])
def test_a_token_without_variance_is_not_scaled(value, channels):
    # A rounding error in place of zero would scale the token away.
    x = torch.full((2, channels), value)
    for n in (2, 4):
        correction = Correction(variance=True)
        found = compact_cpu(x, NMPattern(n, 4), MAGNITUDE, correction)
        assert found.scale.tolist() == [1.0, 1.0]


def test_variance_far_from_zero():
    x = random(3, 256, seed=3) * 1e-3 + 1000
    correction = Correction(variance=True)
    found, expected = (
        run(x, NMPattern(2, 4), MAGNITUDE, correction).scale
        for run in (compact_cpu, compact_reference)
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


def test_scales_are_float32_under_any_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        x = random(65, 64)
        with hostile_memory():
            found = compact_cpu(
                x, NMPattern(2, 4), MAGNITUDE, Correction(variance=True)
            )
    finally:
        torch.set_default_dtype(torch.float32)
    expected = compact_reference(
        x, NMPattern(2, 4), MAGNITUDE, Correction(variance=True)
    )
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_all_channels_and_a_shift_give_is_the_dense_product(dtype):
    # Small integers, so that nothing is rounded and the results are equal.
    generator = torch.Generator().manual_seed(0)
    x, weight, shift, per_token = (
        torch.randint(-3, 4, shape, generator=generator).to(kind)
        for shape, kind in (
            ((9, 32), dtype),
            ((32, 40), dtype),
            ((32,), torch.float32),
            ((9,), torch.float32),
        )
    )
    factor = torch.arange(32.0)
    shifts = {"channel_shift": shift, "token_shift": per_token}
    packed = compact_cpu(
        x, NMPattern(16, 16), MAGNITUDE, Correction(factor=factor, **shifts)
    )
    owed = (shift @ weight.float()).to(dtype)
    found = linear_cpu(packed, weight, owed, per_token, weight.float().sum(0))
    assert torch.equal(found, (x.float() @ weight.float()).to(dtype))
