"""Counts of weights against loops, whatever the size of a piece."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nmsparse.packed import PackedWeight
from nmsparse.packed_format import encode
from nmsparse.packed_manifest import BITMASK, VALUES
from nmsparse.pattern import NMPattern
from offline_prune.verification import content
from offline_prune.verification.tensors import StoredTensor


def counted(weight, pattern):
    """Return zeros, non-finite numbers, broken groups and the first, by loops."""
    rows = weight.double().tolist()
    flat = [value for row in rows for value in row]
    zeros = sum(value == 0 for value in flat)
    nonfinite = sum(value != value or abs(value) == float("inf") for value in flat)
    broken = []
    if pattern is not None:
        for i, row in enumerate(rows):
            for j in range(0, len(row), pattern.m):
                if sum(value != 0 for value in row[j : j + pattern.m]) > pattern.n:
                    broken.append((i, j))
    return zeros, nonfinite, len(broken), broken[0] if broken else None


def found(counts):
    return counts.zeros, counts.nonfinite, counts.broken, counts.first


weights = st.builds(
    lambda seed, rows, groups, m, density: (seed, rows, groups, m, density),
    st.integers(0, 1000),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([0.0, 0.3, 0.5, 0.95]),
)


def make(case):
    seed, rows, groups, m, density = case
    generator = torch.Generator().manual_seed(seed)
    shape = rows, groups * m
    weight = torch.randn(shape, generator=generator)
    weight *= torch.rand(shape, generator=generator) < density
    if seed % 3 == 0:
        weight[0, 0] = float("nan")
    if seed % 5 == 0:
        weight[-1, -1] = float("-inf")
    return weight.to(torch.bfloat16)


def places(path, tensors):
    save_file(tensors, path)
    names = {torch.uint8: "U8", torch.bfloat16: "BF16"}
    return {
        name: StoredTensor(path, names[x.dtype], tuple(x.shape))
        for name, x in tensors.items()
    }


fresh = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=[1, 37, 1 << 22])
def block(request, monkeypatch):
    monkeypatch.setattr(content, "_BLOCK", request.param)
    return request.param


@fresh
@given(weights, st.booleans(), st.booleans())
def test_dense(tmp_path, block, case, structured, transposed):
    weight = make(case)
    m = case[3]
    pattern = NMPattern(max(1, m // 2), m) if structured else None
    stored = weight.T.contiguous() if transposed else weight
    place = places(tmp_path / "a.safetensors", {"w": stored})["w"]
    counts = content.dense_content("w", place, pattern, transposed=transposed)
    assert found(counts) == counted(weight, pattern)


@fresh
@given(weights, st.booleans())
def test_packed(tmp_path, block, case, structured):
    weight = make(case)
    m = case[3]
    pattern = NMPattern(max(1, m // 2), m) if structured else None
    bits, values = encode(PackedWeight.pack(weight))
    tensors = {f"w{BITMASK}": bits, f"w{VALUES}": values.clone()}
    index = places(tmp_path / "a.safetensors", tensors)
    counts, problems = content.packed_content(
        "w", index, pattern, in_features=weight.shape[1]
    )
    assert problems == []
    assert found(counts) == counted(weight, pattern)


def test_bits_beyond_the_last_channel(tmp_path):
    bits = torch.tensor([[0b00000011], [0b10000000]], dtype=torch.uint8)
    values = torch.ones(2, dtype=torch.bfloat16)
    index = places(tmp_path / "a", {f"w{BITMASK}": bits, f"w{VALUES}": values})
    _, problems = content.packed_content("w", index, None, in_features=5)
    assert problems == [
        "w: its bits run beyond channel 4. Expected zeros there: the file is damaged, "
        "copy it again."
    ]
