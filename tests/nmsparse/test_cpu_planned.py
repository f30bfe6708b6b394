"""``SparseLinearPlan``: to the bit what ``compact`` and ``linear`` give in two calls.

Every ISA level runs this file: see ``test_cpu_isa.py``.
"""

from __future__ import annotations

import pytest
import torch
from support.cpu_kernels import (
    DTYPES,
    at_the_end,
    bits,
    hostile_memory,
    kernels,
    random,
    threads,
)

from nmsparse.native.memory import k_major
from nmsparse.ops.linear.cpu import linear_cpu
from nmsparse.ops.linear.planned import SparseLinearPlan
from nmsparse.ops.sparsify.cpu import compact_cpu
from nmsparse.pattern import NMPattern, parse_pattern


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with kernels():
        yield


def two_calls(x, pattern, rows, bias, *, per_token, nonzeros=None):
    packed = compact_cpu(x, pattern, "magnitude", nonzeros=nonzeros)
    return linear_cpu(packed, rows, bias, per_token=per_token)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("text", ["8:16", "3:8", "50%"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_two_calls(dtype, text, per_token):
    pattern = parse_pattern(text)
    stored = random(70, 96, dtype=dtype, seed=1)
    bias = at_the_end(random(70, dtype=dtype, seed=2))
    for rows in (k_major(stored), at_the_end(stored.t().contiguous())):
        for tokens in (0, 1, 2, 5, 17):
            plan = SparseLinearPlan(rows, pattern, tokens, per_token=per_token)
            # Other tokens at every call: buffers of the last one must not show.
            for seed, count in ((0, 1), (1, 2), (2, 1)):
                x = random(tokens, 96, dtype=dtype, seed=seed)
                given = bias if seed else None
                found, expected = torch.zeros(2, 1, dtype=torch.int64)
                with hostile_memory(), threads(count):
                    result = plan(at_the_end(x), given, found)
                wanted = two_calls(
                    x, pattern, rows, given, per_token=per_token, nonzeros=expected
                )
                assert torch.equal(bits(result), bits(wanted))
                assert found == expected


@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 17])
def test_the_kernel_says_how_many_rows_it_read(tokens):
    """The union of all tokens' channels, for 16 tokens at a time; or all lists."""
    pattern, rows = NMPattern(4, 16), k_major(random(40, 64, seed=1))
    x = random(tokens, 64)
    kept = compact_cpu(x, pattern, "magnitude").indices
    union = SparseLinearPlan(rows, pattern, tokens)
    union(x, None)
    walks = kept.split(16)
    assert union.rows_read.value == sum(len(walk.unique()) for walk in walks)
    each = SparseLinearPlan(rows, pattern, tokens, per_token=True)
    each(x, None)
    assert each.rows_read.value == tokens * 16


def test_results_and_plans_do_not_share_memory():
    rows = k_major(random(40, 64, seed=1))
    first = SparseLinearPlan(rows, NMPattern(8, 16), 3)
    second = SparseLinearPlan(k_major(random(40, 64, seed=2)), NMPattern(8, 16), 3)
    x = random(3, 64)
    before = first(x, None)
    kept = before.clone()
    second(x, None)
    first(x + 1, None)
    assert torch.equal(before, kept)
    assert torch.equal(first(x, None), kept)


def test_layouts_and_bias_of_another_dtype():
    rows = k_major(random(40, 64, seed=1))
    plan = SparseLinearPlan(rows, NMPattern(8, 16), 5)
    x, bias = random(64, 5), random(80, seed=3).double()[::2]
    expected = plan(x.t().contiguous(), bias.float().contiguous())
    assert torch.equal(plan(x.t(), bias), expected)
    wide = random(1, 64).expand(5, -1)
    assert torch.equal(plan(wide, None), plan(wide.contiguous(), None))


@pytest.mark.parametrize(
    "x",
    [torch.ones(4, 64), torch.ones(5, 32), torch.ones(64), torch.ones(5, 64).half()],
    ids=lambda x: f"{x.dtype} {tuple(x.shape)}",
)
def test_another_input_is_refused(x):
    plan = SparseLinearPlan(k_major(random(40, 64)), NMPattern(8, 16), 5)
    with pytest.raises(ValueError, match=r"x is torch.*Expected torch.float32 \(5, 64"):
        plan(x, None)
