"""Which copy of a weight a layer keeps, and that the copy is the weight."""

from __future__ import annotations

import pytest
import torch
from support.cpu_kernels import DTYPES, bits, random

from nmsparse import parse_pattern, sparsify
from nmsparse.packed import PackedWeight
from vllm_sparse.cpu.weights import Weights, take_weight, to_streamed
from vllm_sparse.execution import Execution

OUT, K = 48, 64


def pruned(pattern, dtype=torch.bfloat16):
    weight = random(OUT, K, dtype=dtype)
    return weight if pattern is None else sparsify(weight, parse_pattern(pattern))


def form_of(weights):
    assert weights.rows is None or weights.packed is None, "one copy at most"
    found = {"rows": weights.rows, "packed": weights.packed}
    return next((name for name, copy in found.items() if copy is not None), None)


@pytest.mark.parametrize(
    ("pattern", "density", "expected"),
    [
        (None, None, None),  # nothing is sparse
        (None, 0.5, "rows"),
        ("2:4", None, "packed"),
        ("2:4", 0.5, "packed"),  # as few bytes, and it helps with several tokens too
        ("2:4", 0.25, "rows"),  # fewer bytes than the packed weight
        ("1:4", 0.25, "packed"),
        ("80%", 0.5, "packed"),
        ("3:4", None, None),  # too few zeros: bits and values are nearly as large
        ("3:4", 0.5, "rows"),
    ],
)
def test_the_copy_that_reads_fewest_bytes(pattern, density, expected):
    weight = pruned(pattern)
    found = take_weight(weight, density=density, execution=Execution())
    assert form_of(found) == expected
    assert bool(found) == (expected is not None)
    zeros = 1.0 - float(weight.count_nonzero()) / weight.numel()
    assert found.sparsity == pytest.approx(zeros)


def test_bits_weigh_less_beside_wider_values():
    """A packed 2:4 weight is 0.53 of the dense one in float32, 0.56 in bfloat16."""
    for dtype, expected in ((torch.float32, "packed"), (torch.bfloat16, "rows")):
        weight = pruned("2:4", dtype)
        found = take_weight(weight, density=0.45, execution=Execution())
        assert form_of(found) == expected


def test_what_the_execution_says():
    off = Execution(sparse_weights="off")
    assert form_of(take_weight(pruned("2:4"), density=None, execution=off)) is None
    assert form_of(take_weight(pruned("2:4"), density=0.5, execution=off)) == "rows"
    dense = Execution(dense_weights="auto")
    assert form_of(take_weight(pruned(None), density=None, execution=dense)) == "rows"
    assert form_of(take_weight(pruned("2:4"), density=None, execution=dense)) == (
        "packed"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("pattern", "density"), [(None, 0.5), ("2:4", None)])
def test_a_copy_is_the_weight(pattern, density, dtype):
    weight = pruned(pattern, dtype)
    before = weight.clone()
    found = take_weight(weight, density=density, execution=Execution())
    weight.zero_()  # the copy does not live in vLLM's memory
    if found.rows is not None:
        assert found.rows.shape == (K, OUT)
        assert torch.equal(bits(found.rows.t()), bits(before))
        assert found.nbytes >= before.nbytes
    else:
        assert found.packed.shape == (OUT, K)
        assert torch.equal(bits(found.packed.unpack()), bits(before))
        assert found.nbytes == found.packed.nbytes < 0.75 * before.nbytes


def test_a_transposed_weight_is_copied_as_it_reads():
    weight = random(K, OUT).t()
    found = take_weight(weight, density=0.5, execution=Execution())
    assert torch.equal(found.rows, weight.t())


def test_a_weight_of_zeros_alone():
    found = take_weight(torch.zeros(OUT, K), density=0.5, execution=Execution())
    assert found.sparsity == 1.0
    assert torch.equal(found.packed.unpack(), torch.zeros(OUT, K))


def test_nan_is_no_zero():
    weight = torch.full((OUT, K), torch.nan)
    assert take_weight(weight, density=None, execution=Execution()).sparsity == 0.0


def test_moving_a_packed_weight_changes_nothing():
    packed = PackedWeight.pack(pruned("2:4"))
    moved = to_streamed(packed)
    assert moved.values.data_ptr() % 4096 == moved.bits.data_ptr() % 4096 == 0
    assert moved.values.data_ptr() != packed.values.data_ptr()
    for name in ("bits", "values", "offsets", "in_features"):
        ours, theirs = getattr(moved, name), getattr(packed, name)
        same = ours == theirs
        assert same if isinstance(same, bool) else same.all()


def test_no_copy():
    assert not Weights()
    assert Weights().nbytes == 0
