"""Golden-section search: tolerance, number of evaluations, best point seen."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline_prune.channels.golden_section import golden_section

PHI = (math.sqrt(5) - 1) / 2


@given(st.floats(0.0, 1.0), st.sampled_from([0.3, 0.1, 0.01, 1e-4]))
def test_parabola(lowest, tolerance):
    points = []

    def function(x):
        points.append(x)
        return (x - lowest) ** 2

    found = golden_section(function, (0.0, 1.0), tolerance=tolerance, evaluations=100)
    assert abs(found.at - lowest) <= tolerance
    assert (
        found.value
        == (found.at - lowest) ** 2
        == min((x - lowest) ** 2 for x in points)
    )
    # One new evaluation a step, none of them twice.
    assert len(set(points)) == len(points) == found.evaluations
    assert found.evaluations <= math.ceil(math.log(tolerance) / math.log(PHI)) + 2


def test_first_points_divide_by_the_golden_ratio():
    points = []

    def function(x):
        points.append(x)
        return x

    golden_section(function, (-4.0, 4.0), tolerance=0.1, evaluations=3)
    expected = [-4 + (1 - PHI) * 8, -4 + PHI * 8, -4 + (1 - PHI) * PHI * 8]
    assert points == pytest.approx(expected)


@pytest.mark.parametrize("most", [2, 3, 12])
def test_evaluations_are_limited(most):
    found = golden_section(
        lambda x: math.cos(7 * x), (-4.0, 4.0), tolerance=1e-9, evaluations=most
    )
    assert found.evaluations == most


@given(st.lists(st.floats(0, 10), min_size=40, max_size=40))
def test_best_point_seen_of_any_function(values):
    seen = {}

    def steps(x):
        seen[x] = values[min(39, int(x * 40))]
        return seen[x]

    found = golden_section(steps, (0.0, 1.0), tolerance=0.01, evaluations=20)
    assert found.value == min(seen.values()) == seen[found.at]


def test_nan_is_the_worst():
    found = golden_section(
        lambda x: math.nan if x < 0.5 else x, (0.0, 1.0), tolerance=0.1, evaluations=9
    )
    assert 0.5 <= found.at == found.value
    hopeless = golden_section(
        lambda x: math.nan, (0.0, 1.0), tolerance=0.1, evaluations=9
    )
    assert hopeless.value == math.inf
