"""ATP: a straight line of shares, its legal slopes and its grid."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline_prune.allocators.atp import Atp, atp_ratios, candidates, steepest
from offline_prune.errors import InputError


def test_published_limits():
    # 32 blocks at 70%: at most 9 trials of 0.002.
    assert steepest(0.7, 32) == pytest.approx(0.019355, abs=1e-6)
    assert candidates(0.7, 32) == pytest.approx([0.002 * k for k in range(1, 10)])


@given(st.integers(2, 60), st.floats(0.05, 0.95))
def test_line(blocks, sparsity):
    beta = 0.5 * steepest(sparsity, blocks)
    found = atp_ratios(blocks, beta, sparsity=sparsity)
    expected = [sparsity - beta * (blocks - 1) / 2 + beta * i for i in range(blocks)]
    assert found == pytest.approx(expected)
    assert sum(found) / blocks == pytest.approx(sparsity)
    steep = atp_ratios(blocks, steepest(sparsity, blocks), sparsity=sparsity)
    assert min(steep) >= -1e-12
    assert max(steep) <= 1 + 1e-12
    # Nothing steeper is legal: one end touches its limit.
    assert min(steep) < 1e-9 or max(steep) > 1 - 1e-9


@given(st.integers(1, 80), st.floats(0.05, 0.95), st.integers(1, 20))
def test_grid_is_legal_and_short(blocks, sparsity, most):
    found = candidates(sparsity, blocks, most=most)
    assert len(found) <= most
    assert found == sorted(set(found))
    assert all(0 < beta <= steepest(sparsity, blocks) + 1e-12 for beta in found)
    if steepest(sparsity, blocks) >= 0.002:
        assert found


def test_few_blocks_get_a_wider_grid():
    # Two blocks allow slopes up to 1: 500 steps of the paper's.
    assert candidates(0.5, 2, most=4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert candidates(0.5, 1) == []


def test_slope_given_or_searched():
    assert Atp(beta=0.01).slopes(0.7, 32) == [0.01]
    assert Atp().slopes(0.7, 32) == candidates(0.7, 32)
    assert Atp(trials=3, step=0.001).slopes(0.7, 32) == candidates(
        0.7, 32, step=0.001, most=3
    )


def test_shares_need_a_slope():
    with pytest.raises(InputError, match="beta is not set"):
        Atp().ratios([], sizes=[1] * 4, sparsity=0.5)
    chosen = Atp(trials=3).with_beta(0.1)
    assert chosen == Atp(trials=3, beta=0.1)
    found = chosen.ratios([], sizes=[1] * 4, sparsity=0.5)
    assert found == pytest.approx([0.35, 0.45, 0.55, 0.65])
    assert chosen.with_beta(0.0).ratios([], sizes=[1] * 4, sparsity=0.5) == [0.5] * 4


def test_too_steep_is_refused():
    with pytest.raises(InputError, match=r"too steep for 32 blocks.*0\.019355"):
        Atp(beta=0.02).ratios([], sizes=[1] * 32, sparsity=0.7)
    assert Atp(beta=0.02).ratios([], sizes=[5], sparsity=0.7) == [0.7]
