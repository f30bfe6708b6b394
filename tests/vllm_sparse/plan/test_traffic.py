"""Bytes of forms: the laws, and what packed weights really hold."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmsparse import PackedWeight, parse_pattern, sparsify
from nmsparse.packed import PADDING
from vllm_sparse.plan.traffic import (
    DENSE,
    MAX_TOKENS,
    lists,
    packed,
    packed_bytes,
    shared,
    union,
)


class Weight(NamedTuple):
    in_features: int
    out_features: int

    @property
    def dense_bytes(self):
        return 2 * self.in_features * self.out_features


def test_union_by_hand():
    assert union(0.5, 1) == 0.5
    assert union(0.5, 2) == 0.75
    assert union(0.5, 4) == 0.9375
    assert union(0.25, 2) == 0.4375
    assert union(1, 3) == 1


@given(st.floats(0.01, 1), st.integers(1, 64))
def test_union_grows_with_density_and_tokens(density, tokens):
    assert density - 1e-12 <= union(density, tokens) <= union(density, tokens + 1)
    assert union(density / 2, tokens) <= union(density, tokens) <= 1


def test_forms_by_hand():
    weight = Weight(64, 32)  # 4096 bytes
    assert DENSE.read(weight, 7) == 4096
    assert lists(1 / 4).read(weight, 1) == 1024
    assert lists(1 / 2).read(weight, 3) == 4096 * 0.875
    assert shared(1 / 4).read(weight, 16) == 1024
    # Half of the values, 32 rows of one 64-bit word, 33 starts of 8 bytes.
    assert packed(1 / 2).read(weight, 5) == 2048 + 32 * 8 + 33 * 8
    assert lists(1 / 2).seconds(weight, 1, 1e3, 0.5) == 2048 / 1e3 + 2 * 0.5


@pytest.mark.parametrize("size", [(48, 192), (40, 100)])
def test_packed_bytes_are_those_of_a_packed_weight(size):
    weight = sparsify(torch.randn(size, dtype=torch.bfloat16), parse_pattern("75%"))
    made = PackedWeight.pack(weight)
    density = int(weight.count_nonzero()) / weight.numel()
    counted = packed_bytes(Weight(size[1], size[0]), density, offsets=True)
    assert counted == made.nbytes - 2 * PADDING


def test_steps_of_kernels_are_those_that_are_measured():
    pytest.importorskip("vllm")
    from nmsparse.ops.packed.limits import MAX_TOKENS as PACKED_TOKENS
    from vllm_sparse.table import TOKENS

    assert MAX_TOKENS == TOKENS[-1] == PACKED_TOKENS
