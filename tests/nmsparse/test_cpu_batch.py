"""C++ ``linear``: what a token gets does not depend on the tokens beside it.

Several tokens walk the union of their channels. Every ISA level runs this file: see
``test_cpu_isa.py``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.cpu_kernels import (
    DTYPES,
    assert_rounded,
    at_the_end,
    compacted,
    exact_linear,
    hostile_memory,
    kernels,
    random,
    ulps,
)

from nmsparse.native import library
from nmsparse.ops.linear.cpu import linear_cpu
from nmsparse.ops.packed.cpu import stream_o_major
from nmsparse.ops.sparsify import CompactActivation
from nmsparse.ops.sparsify.cpu import compact_cpu
from nmsparse.pattern import NMPattern


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with kernels():
        yield


@pytest.mark.parametrize("tokens", [2, 8, 17])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_list_for_all_tokens(dtype, tokens):
    x = compacted(tokens, 80, dtype)
    shared = at_the_end(x.indices[:1]).expand(tokens, -1)
    weight = random(80, 70, dtype=dtype, seed=2)
    weight[[k for k in range(80) if k not in x.indices[0].tolist()]] = torch.nan
    case = CompactActivation(x.values, shared, 80)
    spread = CompactActivation(x.values, shared.contiguous(), 80)
    clean = weight.nan_to_num(0)
    with hostile_memory():
        results = [
            linear_cpu(each, weight, None, per_token=per_token)
            for each in (case, spread)
            for per_token in (False, True)
        ]
    for found in results:
        assert_rounded(found, *exact_linear(case, clean), 40)
        assert torch.equal(found, results[0])


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropped_channels_are_not_read(dtype, per_token):
    x = compacted(3, 96, dtype, "1:8")
    weight = random(96, 70, dtype=dtype, seed=2)
    expected = linear_cpu(x, weight, None, per_token=per_token)
    dropped = torch.ones(96, dtype=torch.bool)
    dropped[x.indices.flatten().long()] = False
    weight[dropped] = torch.nan
    found = linear_cpu(x, weight, None, per_token=per_token)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_of_nan_stays_alone(dtype, poison):
    x = compacted(20, 64, dtype)
    weight = random(64, 45, dtype=dtype, seed=2)
    expected = linear_cpu(x, weight, None)
    for t in (0, 7, 16, 19):
        x.values[t] = poison
    found = linear_cpu(x, weight, None)
    others = [t for t in range(20) if t not in (0, 7, 16, 19)]
    assert torch.equal(found[others], expected[others])
    assert not found[[0, 7, 16, 19]].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alone_and_in_a_batch(dtype):
    # Rows that a token dropped add an exact zero to it, so only the pairs of rows that
    # the bfloat16 dot product rounds together can differ.
    x = compacted(8, 256, dtype)
    weight = random(256, 100, dtype=dtype, seed=2)
    batch = linear_cpu(x, weight, None)
    alone = torch.cat([
        linear_cpu(
            CompactActivation(x.values[t : t + 1], x.indices[t : t + 1], 256),
            weight, None,
        )
        for t in range(8)
    ])  # fmt: skip
    each = linear_cpu(x, weight, None, per_token=True)
    assert torch.equal(alone, each)
    if dtype is torch.bfloat16 and library.status().isa == "avx512bf16":
        magnitude = exact_linear(x, weight)[1]
        small = batch.double().abs() < magnitude / 64  # cancelled: no rule about ulps
        assert ulps(batch.masked_fill(small, 0), alone.masked_fill(small, 0)) <= 1
        assert_rounded(batch, *exact_linear(x, weight), 128)
    else:
        assert torch.equal(batch, alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_calls_from_several_threads(dtype):
    # ctypes lets other threads run meanwhile; scratch memory belongs to one of them.
    weight = random(256, 300, dtype=dtype, seed=2)
    stored = [random(3, 256, dtype=dtype, seed=seed) for seed in range(4)]

    def run(x):
        packed = compact_cpu(x, NMPattern(8, 16), "magnitude")
        return linear_cpu(packed, weight, None), stream_o_major(x, weight.t(), None)

    expected = [run(x) for x in stored]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for found, wanted in zip(pool.map(run, stored), expected, strict=True):
                assert all(map(torch.equal, found, wanted))
