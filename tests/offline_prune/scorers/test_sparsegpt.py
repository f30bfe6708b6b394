"""SparseGPT against the official sweep, written out in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.input_statistics import gaussian, statistics_of, with_gram

from nmsparse.pattern import NMPattern
from offline_prune.scorers.sparsegpt import SparseGpt
from offline_prune.selection import LayerTarget
from offline_prune.statistics.inputs import InputStatistics
from offline_prune.statistics.needs import Need


def official(weight, sequences, *, sparsity=0.0, pattern=None, blocksize=128):
    """Return the updated weight and what goes; one more goes from every block."""
    w = weight.double()
    h = torch.zeros(w.shape[1], w.shape[1], dtype=torch.float64)
    for seen, x in enumerate(sequences):
        h *= seen / (seen + 1)
        x = (2 / (seen + 1)) ** 0.5 * x.double().T
        h += x @ x.T
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h))
    h = torch.cholesky_inverse(torch.linalg.cholesky(h))
    u = torch.linalg.cholesky(h, upper=True)
    gone = torch.zeros(w.shape, dtype=torch.bool)
    for i1 in range(0, w.shape[1], blocksize):
        i2 = min(i1 + blocksize, w.shape[1])
        w1, u1 = w[:, i1:i2].clone(), u[i1:i2, i1:i2]
        err = torch.zeros_like(w1)
        if pattern is None:
            scores = w1**2 / u1.diagonal().reshape(1, -1) ** 2
            threshold = scores.flatten().sort()[0][int(scores.numel() * sparsity)]
            gone[:, i1:i2] = scores <= threshold
        for i in range(i2 - i1):
            if pattern is not None and i % pattern.m == 0:
                part = slice(i, i + pattern.m)
                scores = w1[:, part] ** 2 / u1.diagonal()[part].reshape(1, -1) ** 2
                count = pattern.m - pattern.n
                low = torch.topk(scores, count, dim=1, largest=False)[1]
                gone.scatter_(1, i1 + i + low, True)
            q = w1[:, i] * ~gone[:, i1 + i]
            err[:, i] = (w1[:, i] - q) / u1[i, i]
            w1[:, i:] -= err[:, i : i + 1] @ u1[i : i + 1, i:]
            w1[:, i] = q
        w[:, i1:i2] = w1
        w[:, i2:] -= err @ u[i1:i2, i2:]
    return w.float(), gone


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("blocksize", [8, 16, 128])
def test_agrees_with_the_official_blocks(sparsity, blocksize):
    weight, inputs = gaussian(10, 64)
    expected, gone = official(weight, inputs, sparsity=sparsity, blocksize=blocksize)
    target = LayerTarget.count(int(gone.sum()))
    scorer = SparseGpt(blocksize=blocksize)
    pruned = scorer.prune(weight, statistics_of(*inputs), target)
    assert torch.equal(~pruned.keep, gone)
    torch.testing.assert_close(pruned.weight, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (6, 8), (8, 16)])
@pytest.mark.parametrize("blocksize", [16, 128])
def test_agrees_with_the_official_groups(n, m, blocksize):
    weight, inputs = gaussian(10, 64, seed=n)
    pattern = NMPattern(n, m)
    expected, gone = official(weight, inputs, pattern=pattern, blocksize=blocksize)
    scorer = SparseGpt(blocksize=blocksize)
    pruned = scorer.prune(weight, statistics_of(*inputs), LayerTarget.nm(pattern))
    assert torch.equal(~pruned.keep, gone)
    torch.testing.assert_close(pruned.weight, expected, rtol=1e-3, atol=1e-4)


def test_dead_inputs_go_first_as_in_the_official_code():
    weight, inputs = gaussian(10, 32)
    for x in inputs:
        x[:, [4, 21]] = 0.0
    expected, gone = official(weight, inputs, sparsity=0.5, blocksize=16)
    assert gone[:, [4, 21]].all()
    target = LayerTarget.count(int(gone.sum()))
    scorer, statistics = SparseGpt(blocksize=16), statistics_of(*inputs)
    pruned = scorer.prune(weight, statistics, target)
    assert torch.equal(~pruned.keep, gone)
    torch.testing.assert_close(pruned.weight, expected, rtol=1e-3, atol=1e-4)
    assert (scorer.scores(weight, statistics)[:, [4, 21]] == 0).all()


def test_closed_form():
    # hessian() is twice the Gram matrix of the one sequence.
    statistics = with_gram(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    weight = torch.tensor([[1.0, 3.0]])
    scorer = SparseGpt(percdamp=0)
    scores = scorer.scores(weight, statistics)
    torch.testing.assert_close(scores, torch.tensor([[1.5, 18.0]]))
    pruned = scorer.prune(weight, statistics, LayerTarget.count(1))
    torch.testing.assert_close(pruned.weight, torch.tensor([[0.0, 3.5]]))


@given(st.integers(0, 60), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_uncorrelated_inputs_leave_squared_wanda_without_update(count, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 12, generator=generator)
    scales = torch.rand(12, generator=generator) + 0.1
    statistics = statistics_of(torch.diag(scales))
    scorer = SparseGpt(percdamp=0)
    pruned = scorer.prune(weight, statistics, LayerTarget.count(count))
    order = (weight.abs() * scales).flatten().argsort()
    expected = torch.ones(60, dtype=torch.bool)
    expected[order[:count]] = False
    assert torch.equal(pruned.keep.flatten(), expected)
    assert torch.equal(pruned.weight, torch.where(pruned.keep, weight, 0.0))


@given(
    st.integers(1, 7),
    st.integers(1, 20),
    st.integers(1, 24),
    st.sampled_from(["row", "layer"]),
    st.data(),
)
@settings(deadline=None, max_examples=60)
def test_count_is_exact_whatever_the_blocks(rows, columns, blocksize, compare, data):
    weight, inputs = gaussian(rows, columns)
    count = data.draw(st.integers(0, rows * columns))
    scorer = SparseGpt(blocksize=blocksize, compare=compare)
    target = LayerTarget.count(count)
    keep = scorer.prune(weight, statistics_of(*inputs), target).keep
    assert int((~keep).sum()) == count
    gone = (~keep).sum(1)
    if compare == "row":
        assert gone.max() - gone.min() <= 1
    # Blocks lose what is theirs, to one weight (per row, if rows are compared).
    slack = rows if compare == "row" else 1
    for start in range(0, columns, blocksize):
        part = keep[:, start : start + blocksize]
        fair = count * part.shape[1] / columns
        assert abs(int((~part).sum()) - fair) <= slack


@given(st.lists(st.integers(0, 20), min_size=6, max_size=6), st.integers(1, 24))
@settings(deadline=None, max_examples=40)
def test_counts_of_rows_are_obeyed(rows, blocksize):
    weight, inputs = gaussian(6, 20)
    target = LayerTarget.per_row(torch.tensor(rows))
    scorer = SparseGpt(blocksize=blocksize)
    keep = scorer.prune(weight, statistics_of(*inputs), target).keep
    assert (~keep).sum(1).tolist() == rows


@pytest.mark.parametrize("blocksize", [1, 12, 20])
def test_blocks_are_rounded_up_to_whole_groups(blocksize):
    weight, inputs = gaussian(4, 64)
    statistics, target = statistics_of(*inputs), LayerTarget.nm(NMPattern(4, 8))
    found = SparseGpt(blocksize=blocksize).prune(weight, statistics, target)
    # With static groups only the arithmetic depends on the blocks.
    expected = SparseGpt(blocksize=64).prune(weight, statistics, target)
    assert torch.equal(found.keep, expected.keep)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-4, atol=1e-5)


def test_scale_of_a_row_matters_and_of_the_layer_does_not():
    weight, inputs = gaussian(6, 32)
    statistics, target = statistics_of(*inputs), LayerTarget.count(96)
    one = SparseGpt().prune(weight, statistics, target)
    other = SparseGpt().prune(weight * 8, statistics, target)
    assert torch.equal(one.keep, other.keep)
    torch.testing.assert_close(other.weight, one.weight * 8)
    weight[2] *= 1e-3
    assert int(SparseGpt().prune(weight, statistics, target).keep[2].sum()) == 0


def test_fewer_tokens_than_inputs_work():
    weight, _ = gaussian(6, 48)
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    pruned = SparseGpt().prune(weight, statistics_of(x), LayerTarget.count(144))
    assert pruned.weight.isfinite().all()
    assert pruned.fallback is None
    # Five tokens and 24 weights a row: nearly everything can be made up for.
    error = ((weight - pruned.weight) @ x.T).norm() / (weight @ x.T).norm()
    plain = (weight * ~pruned.keep @ x.T).norm() / (weight @ x.T).norm()
    assert error < 0.5 * plain


def test_raised_damping_is_told():
    statistics = InputStatistics(2, needs=Need)
    statistics.update(torch.ones(1, 2))
    statistics.gram = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    pruned = SparseGpt().prune(torch.ones(1, 2), statistics, LayerTarget.count(1))
    assert pruned.fallback == "damping raised from 0.01 to 0.1"


def test_needs_the_gram_matrix():
    assert SparseGpt().required == {Need.GRAM}
    statistics = statistics_of(torch.ones(2, 4), needs=(Need.MOMENTS,))
    with pytest.raises(ValueError, match="no Gram matrix"):
        SparseGpt().prune(torch.ones(2, 4), statistics, LayerTarget.count(1))
