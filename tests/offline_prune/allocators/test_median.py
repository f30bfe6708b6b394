"""The median in two passes against sorting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_prune.allocators.median import lower_median

VALUES = st.one_of(
    st.floats(0.0, 3.0000000054977558e38, width=32),
    st.sampled_from([0.0, -0.0, 1.0, 1.0000001192092896, 1e-45]),
)


@given(st.lists(st.lists(VALUES, max_size=6), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_agrees_with_sorting(parts):
    tensors = [torch.tensor(part, dtype=torch.float32) for part in parts]
    ranked = sorted(value for tensor in tensors for value in tensor.tolist())
    found = lower_median(lambda: tensors)
    if ranked:
        assert found == ranked[(len(ranked) - 1) // 2]
    else:
        assert math.isnan(found)


@pytest.mark.parametrize("count", [1001, 20000])
def test_agrees_with_torch(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)).abs()
    parts = [part.view(1, -1) for part in values.split(300)]
    assert lower_median(lambda: parts) == float(values.median())
