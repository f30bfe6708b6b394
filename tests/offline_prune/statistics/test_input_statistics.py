"""Statistics of inputs against the papers' running formulas, in plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_prune.statistics import InputStatistics, Need

ALL = frozenset(Need)


def sequences(seed, *, count=4, features=6):
    """Return sequences of different lengths, channels of different scale and mean."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-1, 2, features)
    return [
        torch.randn(5 + 300 * (i % 2) + i, features, generator=generator) * scale + i
        for i in range(count)
    ]


def collected(data, **options):
    statistics = InputStatistics(data[0].shape[-1], **{"needs": ALL, **options})
    for x in data:
        statistics.update(x)
    return statistics


@pytest.mark.parametrize("seed", range(3))
def test_moments_are_those_of_all_tokens(seed):
    data = sequences(seed)
    wide = torch.cat(data).double()
    found = collected(data)
    assert (found.tokens, found.sequences) == (len(wide), 4)
    torch.testing.assert_close(found.sum, wide.sum(0), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(found.sum_sq, (wide**2).sum(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.sum_abs, wide.abs().sum(0), rtol=1e-12, atol=0)
    for name, expected in {
        "mean": wide.mean(0),
        "second_moment": (wide**2).mean(0),
        "abs_mean": wide.abs().mean(0),
        "variance": wide.var(0, correction=0),
    }.items():
        value = getattr(found, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-9)


def test_norm_is_the_root_of_wandas_running_scaler():
    data = sequences(1)
    scaler = torch.zeros(6)
    for seen, x in enumerate(data, start=1):
        scaler *= (seen - 1) / seen
        scaler += torch.norm(x.T, p=2, dim=1) ** 2 / seen
    torch.testing.assert_close(collected(data).norm, scaler.sqrt(), rtol=1e-5, atol=0)


def test_hessian_is_sparsegpts_running_hessian():
    data = sequences(2)
    hessian = torch.zeros(6, 6)
    for seen, x in enumerate(data, start=1):
        hessian *= (seen - 1) / seen
        scaled = (2 / seen) ** 0.5 * x.T
        hessian += scaled @ scaled.T
    found = collected(data)
    torch.testing.assert_close(found.hessian(), hessian, rtol=1e-4, atol=1e-3)
    before = found.gram.clone()
    found.hessian().fill_(0)
    assert torch.equal(found.gram, before), "the Hessian is a copy"


def test_covariance_gives_the_variance_of_every_linear_output():
    data = sequences(3)
    found = collected(data)
    expected = torch.cov(torch.cat(data).double().T, correction=0)
    scale = expected.diagonal().sqrt()
    error = (found.covariance.double() - expected) / (scale[:, None] * scale)
    assert error.abs().max() < 1e-4
    assert torch.equal(found.covariance.diagonal(), found.variance)
    w = torch.linspace(-1, 1, 6)
    variance = (torch.cat(data) @ w).var(correction=0)
    torch.testing.assert_close(w @ found.covariance @ w, variance, rtol=1e-4, atol=0)


def test_a_constant_channel_has_no_variance_and_a_large_mean_hides_none():
    x = torch.full((1000, 2), 1234.567)
    x[:, 1] += torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.01
    found = collected([x])
    assert found.variance[0] < 1e-8
    expected = x[:, 1].double().var(correction=0).float()
    torch.testing.assert_close(found.variance[1], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_is_taken_as_the_float32_it_stands_for(dtype):
    x = sequences(4)[1].to(dtype)
    found, expected = collected([x[None]]), collected([x.float()])
    for name in ("sum", "sum_sq", "gram", "sample"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_no_tokens_give_zeros():
    for found in (InputStatistics(3, needs=ALL), collected([torch.zeros(0, 3)])):
        assert found.tokens == 0
        for name in ("mean", "variance", "second_moment", "abs_mean", "norm"):
            assert torch.equal(getattr(found, name), torch.zeros(3)), name
        assert torch.equal(found.covariance, torch.zeros(3, 3))
        assert torch.equal(found.hessian(), torch.zeros(3, 3))
        assert found.sample.shape == (0, 3)


def test_only_what_is_needed_is_kept():
    found = collected([torch.ones(4, 3)], needs={Need.MOMENTS})
    assert found.gram is None
    assert found.sample is None
    for read in (lambda: found.covariance, found.hessian):
        with pytest.raises(ValueError, match=r"found moments.*Need\.GRAM"):
            read()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 4))
def test_merged_parts_are_the_whole(seed, cut):
    data = sequences(seed)
    parts = []
    for start, part in ((0, data[:cut]), (cut, data[cut:])):
        statistics = InputStatistics(6, needs=ALL, sample_rows=20, sequences=4)
        for index, x in enumerate(part, start=start):
            statistics.update(x, index=index)
        parts.append(statistics)
    # The later part first: the order must not matter.
    parts[1].merge(parts[0])
    whole = collected(data, sample_rows=20, sequences=4)
    assert (parts[1].tokens, parts[1].sequences) == (whole.tokens, whole.sequences)
    torch.testing.assert_close(parts[1].sum_sq, whole.sum_sq, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts[1].gram, whole.gram, rtol=1e-5, atol=1e-2)
    assert torch.equal(parts[1].sample, whole.sample)


def test_merging_refuses_another_layer():
    mine = InputStatistics(3, needs=ALL)
    for other in (InputStatistics(4, needs=ALL), InputStatistics(3, needs=())):
        with pytest.raises(ValueError, match="cannot be merged"):
            mine.merge(other)


def test_permuted_statistics_are_those_of_permuted_inputs():
    data = sequences(5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    found = collected(data)
    before = found.sum.clone()
    moved = found.permute(order)
    expected = collected([x[:, order] for x in data])
    for name in ("sum", "sum_abs", "norm", "sample"):
        assert torch.equal(getattr(moved, name), getattr(expected, name)), name
    torch.testing.assert_close(moved.gram, expected.gram, rtol=1e-5, atol=1e-2)
    assert (moved.tokens, moved.sequences) == (found.tokens, found.sequences)
    assert torch.equal(found.sum, before)
    with pytest.raises(ValueError, match="each of the 6 channels once"):
        found.permute(torch.tensor([0, 0, 1, 2, 3, 4]))


def test_values_that_are_not_finite_are_counted():
    x = torch.ones(3, 2)
    x[0, 1], x[2, 0] = float("nan"), -float("inf")
    found = collected([torch.ones(3, 2), x])
    assert found.nonfinite == 2
    other = collected([x])
    other.merge(found)
    assert other.nonfinite == 4


@pytest.mark.parametrize("shape", [(2, 5, 3), (5, 4), (3,)])
def test_anything_but_one_sequence_is_refused(shape):
    with pytest.raises(ValueError, match=r"Expected one sequence, \[T, 3\]"):
        InputStatistics(3, needs=ALL).update(torch.zeros(shape))
