"""What every allocator owes: names, needs, shares that make a budget, determinism."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocks import random_block

from offline_prune.allocators import DEFAULT_ALLOCATOR, allocators, corrections
from offline_prune.budget import project
from offline_prune.errors import InputError

NAMES = ["alpha_pruning", "atp", "dlp", "owl", "uniform"]
MEASURING = ["alpha_pruning", "dlp", "owl"]


def make(name):
    options = {"beta": 0.01} if name == "atp" else {}
    return allocators.get(name).parse(options, source=name)


def test_registry():
    assert list(allocators) == NAMES
    assert list(corrections) == ["absorption"]
    assert DEFAULT_ALLOCATOR in allocators


def test_registries_import_no_torch():
    program = (
        "import sys, offline_prune.allocators, offline_prune.channels, "
        "offline_prune.permutation; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_an_allocator_says_what_it_is(name):
    allocator = make(name)
    assert allocator.name == name
    assert allocator.title
    assert "arXiv" in allocator.paper or name == "uniform"
    assert allocator.measures is (name in MEASURING)
    if not allocator.measures:
        assert allocator.needs == frozenset()
        assert allocator.measure(random_block(0)) is None


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_refused(name):
    with pytest.raises(InputError, match="Unknown option 'lamb'"):
        allocators.get(name).parse({"lamb": 1}, source=name)


@pytest.mark.parametrize("name", NAMES)
@given(
    st.lists(
        st.tuples(st.floats(1e-3, 1e3), st.integers(1, 10**8)), min_size=1, max_size=8
    ),
    st.floats(0.3, 0.8),
)
@settings(deadline=None, max_examples=40)
def test_shares_make_the_budget(name, blocks, sparsity):
    measures, sizes = map(list, zip(*blocks, strict=True))
    raw = make(name).ratios(measures, sizes=sizes, sparsity=sparsity)
    assert raw == make(name).ratios(measures, sizes=sizes, sparsity=sparsity)
    shares = project(raw, sizes, sparsity=sparsity)
    total = math.fsum(p * s for p, s in zip(sizes, shares, strict=True))
    assert total / sum(sizes) == pytest.approx(sparsity, abs=1e-12)
    # Before projection the paper's own mean is exact already.
    weights = sizes if name == "alpha_pruning" else [1] * len(sizes)
    mean = sum(p * s for p, s in zip(weights, raw, strict=True)) / sum(weights)
    assert mean == pytest.approx(sparsity, abs=1e-9)


@pytest.mark.parametrize("name", [*MEASURING, "uniform"])
@pytest.mark.parametrize("measure", [0.0, 3.5, math.nan])
def test_equal_measures_are_uniform(name, measure):
    raw = make(name).ratios([measure] * 3, sizes=[5, 1, 9], sparsity=0.6)
    assert raw == [0.6] * 3


@pytest.mark.parametrize("name", MEASURING)
def test_an_unmeasured_block_is_neutral(name):
    sizes = [4, 4, 4]
    raw = make(name).ratios([1.0, math.nan, 3.0], sizes=sizes, sparsity=0.6)
    assert raw == make(name).ratios([1.0, 2.0, 3.0], sizes=sizes, sparsity=0.6)
    assert raw[1] == pytest.approx(0.6)


@pytest.mark.parametrize("name", MEASURING)
def test_measures_are_repeatable_and_depend_on_the_block(name):
    allocator = make(name)
    first = allocator.measure(random_block(0))
    assert first == allocator.measure(random_block(0))
    assert math.isfinite(first)
    assert first != allocator.measure(random_block(1))


@pytest.mark.parametrize("name", MEASURING)
def test_weights_that_are_not_finite_are_refused(name):
    block = random_block(0)
    block.weights["up"][3, 4] = math.nan
    with pytest.raises(InputError, match=r"up: 1 of 160 values of its weight"):
        make(name).measure(block)
