"""C++ ``linear``: the exact product within its rounding, and no other memory.

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
    compacted,
    exact_linear,
    hostile_memory,
    kernels,
    random,
    threads,
    ulps,
)

from nmsparse.native import library
from nmsparse.native.memory import k_major, padded_rows
from nmsparse.ops.linear.cpu import linear_cpu, stream_k_major
from nmsparse.ops.linear.reference import linear_reference
from nmsparse.ops.packed.cpu import stream_o_major
from nmsparse.ops.sparsify import CompactActivation
from nmsparse.pattern import parse_pattern

# Around steps of 32 outputs, ranges of 64 of a thread, and slabs of 8192.
OUTPUTS = (1, 31, 32, 33, 65, 200, 8193)
TERMS = ("bias", "addend", "scale", "token_shift", "row_sum")


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with kernels():
        yield


def first(x, tokens):
    return CompactActivation(x.values[:tokens], x.indices[:tokens], x.in_features)


def assert_product(x, weight, *, per_token=False, **terms):
    """Run the kernel on guarded memory and compare; return the result."""
    given = {name: at_the_end(value) for name, value in terms.items()}
    bias = given.pop("bias", None)
    with hostile_memory():
        found = linear_cpu(x, weight, bias, **given, per_token=per_token)
    assert found.dtype is x.values.dtype
    assert_rounded(found, *exact_linear(x, weight, **terms), x.values.shape[1] + 3)
    return found


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_tokens_and_every_layout(dtype, outputs):
    x = compacted(33, 48, dtype)
    stored = random(outputs, 48, dtype=dtype, seed=1)
    weight = stored.t().contiguous()
    row = -(-outputs // 32) * 32
    layouts = [
        at_the_end(weight),
        at_the_end(weight, row=outputs + 40),  # the last row is not padded
        at_the_end(weight, row=row, last=row),  # padded with NaN
        k_major(stored),
    ]
    whole_steps = row == outputs
    assert [padded_rows(w) for w in layouts] == [whole_steps, whole_steps, True, True]
    whole, magnitude = exact_linear(x, weight)
    few = (0, 1, 2, 15, 16, 17, 33)
    results = []
    for count, layout in zip((1, 2, 1, 2), layouts, strict=True):
        for tokens in few if count == 2 or outputs > 65 else range(34):
            with hostile_memory(), threads(count):
                found = linear_cpu(first(x, tokens), layout, None)
            assert_rounded(found, whole[:tokens], magnitude[:tokens], 24)
        results.append(found)
    reference = linear_reference(x, weight, None)
    assert_rounded(reference, whole, magnitude, 24)
    if dtype is not torch.bfloat16 or library.status().isa != "avx512bf16":
        # One addition after another, in the order of channels, wherever they lie.
        for found in results[1:]:
            assert torch.equal(found, results[0])


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pattern(dtype, text):
    # Few kept channels, many, all, and groups of 16 rows that are not full.
    pattern = parse_pattern(text)
    for groups in (1, 5, 9):
        channels = groups * getattr(pattern, "m", 7)
        x = compacted(6, channels, dtype, text)
        weight = at_the_end(random(channels, 70, dtype=dtype, seed=2))
        for per_token in (False, True):
            assert_product(x, weight, per_token=per_token)


@pytest.mark.parametrize("tokens", [1, 5, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_terms(dtype, tokens):
    x = compacted(tokens, 64, dtype)
    weight = random(64, 77, dtype=dtype, seed=3)
    terms = {
        "bias": random(77, dtype=dtype, seed=4),
        "addend": random(tokens, 77, dtype=dtype, seed=5),
        "scale": random(tokens, seed=6) * 3,
        "token_shift": random(tokens, seed=7),
        "row_sum": weight.float().sum(0),
    }
    for number in range(1 << len(TERMS)):
        chosen = {n: terms[n] for i, n in enumerate(TERMS) if number >> i & 1}
        if ("token_shift" in chosen) != ("row_sum" in chosen):
            continue
        scale = chosen.pop("scale", None)
        case = CompactActivation(x.values, x.indices, 64, scale)
        with threads(2 if tokens == 5 else 1):  # the second starts at output 64
            assert_product(case, weight, **chosen, per_token=number % 2 == 1)
        bias = chosen.pop("bias", None)
        reference = linear_reference(case, weight, bias, **chosen)
        if bias is not None:
            chosen["bias"] = bias
        assert_rounded(reference, *exact_linear(case, weight, **chosen), 35)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_one_sign_are_rounded_once(dtype):
    x = compacted(8, 512, dtype)
    x.values.abs_()
    weight = random(512, 96, dtype=dtype, seed=3).abs()
    expected = exact_linear(x, weight)[0].to(dtype)
    for per_token in (False, True):
        found = linear_cpu(x, weight, None, per_token=per_token)
        assert ulps(found, expected) <= (32 if dtype is torch.float32 else 1)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_number_of_16_bits_is_read(dtype):
    number = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(1, -1)
    weight = torch.cat([number, number[:, :7]], dim=1).view(dtype)  # and a tail
    one = torch.ones(1, 1, dtype=dtype)
    expected = weight
    if dtype is torch.bfloat16 and library.status().isa == "avx512bf16":
        # The dot product of the processor takes subnormals for zeros; a tail has none.
        tiny = weight.abs() < torch.finfo(dtype).smallest_normal
        expected = torch.where(tiny, 0, weight)
    for found in (
        stream_k_major(one, weight, None),
        stream_o_major(one, weight.t().contiguous(), None),
    ):
        whole = found[:, : 1 << 16], expected[:, : 1 << 16]
        torch.testing.assert_close(*whole, rtol=0, atol=0, equal_nan=True)
    found = stream_k_major(one, weight, None)[:, 1 << 16 :]
    assert torch.equal(found, weight[:, 1 << 16 :])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_streaming_dense_tokens(dtype):
    for channels, outputs in ((1, 1), (15, 33), (16, 64), (37, 200)):
        weight = at_the_end(random(channels, outputs, dtype=dtype, seed=1))
        bias = at_the_end(random(outputs, dtype=dtype, seed=2))
        stored = random(33, channels, dtype=dtype)
        for tokens in (0, 1, 2, 16, 17, 33):
            x = at_the_end(stored[:tokens], row=channels + 3)
            with hostile_memory():
                found = stream_k_major(x, weight, bias)
            wide = x.double(), weight.double(), bias.double()
            magnitude = wide[0].abs() @ wide[1].abs() + wide[2].abs()
            assert_rounded(found, wide[0] @ wide[1] + wide[2], magnitude, channels + 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unusual_layouts(dtype):
    x = compacted(4, 32, dtype)
    wide = random(40, 90, dtype=dtype, seed=1)
    assert_product(x, wide[3:35, 5:70])
    assert_product(x, random(50, 32, dtype=dtype, seed=2).t())
    assert_product(x, wide[:1, :33].expand(32, -1))
    assert_product(x, wide[:32, ::3])
    turned = CompactActivation(
        x.values.t().contiguous().t(), x.indices.t().contiguous().t(), 32
    )
    assert_product(turned, wide[:32])
    assert_product(CompactActivation(x.values, x.indices.long(), 32), wide[:32])
    single = compacted(3, 1, dtype, "1:1")
    assert_product(single, random(33, 1, dtype=dtype, seed=2).t())
    nothing = CompactActivation(x.values[:, :0], x.indices[:, :0], 0)
    found = linear_cpu(nothing, wide[:0], wide[0])
    assert torch.equal(found, wide[:1].expand(4, -1))


@given(
    st.sampled_from(DTYPES),
    st.tuples(st.integers(0, 18), st.integers(1, 6), st.integers(1, 70)),
    st.sets(st.sampled_from(["bias", "addend"])),
    st.tuples(st.booleans(), st.integers(0, 1 << 16)),
)
@settings(deadline=None, max_examples=60)
def test_any_small_case(dtype, sizes, chosen, options):
    tokens, groups, outputs = sizes
    per_token, seed = options
    x = compacted(tokens, groups * 8, dtype, "3:8", seed)
    weight = at_the_end(random(groups * 8, outputs, dtype=dtype, seed=seed + 1))
    shapes = {"bias": (outputs,), "addend": (tokens, outputs)}
    terms = {name: random(*shapes[name], dtype=dtype, seed=seed) for name in chosen}
    inputs = (x.values, x.indices, weight, *terms.values())
    before = [bits(t).clone() for t in inputs]
    assert_product(x, weight, per_token=per_token, **terms)
    assert all(map(torch.equal, before, map(bits, inputs))), "an input was modified"
