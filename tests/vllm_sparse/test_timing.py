"""Timing of a sample of calls: buckets, the sample, and nothing when it is off."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vllm_sparse.timing import BUCKETS, EVERY, KernelTimer


class FakeLinear:
    """A layer that counts its calls; ``real`` says whether the step is one."""

    def __init__(self):
        self.real = True
        self.ran = []

    def counts(self, x):
        return self.real

    def outcome(self, x):
        return SimpleNamespace(way="gather")

    def run(self, x, bias, counters):
        self.ran.append(x)
        return x + 1


def call(linear, times):
    x = torch.zeros(1)
    for _ in range(times):
        assert linear.run(x, None, None) == 1


def test_a_sample_of_the_calls_is_timed():
    timer, linears = KernelTimer(), [FakeLinear(), FakeLinear()]
    for linear in linears:
        timer.watch(linear)
    for _ in range(EVERY * 2):
        for linear in linears:
            call(linear, 1)
    assert [len(linear.ran) for linear in linears] == [EVERY * 2] * 2
    assert sum(count for count, _ in timer.timings["gather"]) == 4
    assert sum(time for _, time in timer.timings["gather"]) > 0
    timer.reset()
    assert timer.timings == {}


def test_dummy_steps_are_not_timed():
    timer, linear = KernelTimer(), FakeLinear()
    timer.watch(linear)
    linear.real = False
    call(linear, 3 * EVERY)
    assert timer.timings == {}


@pytest.mark.parametrize(
    ("nanoseconds", "place"),
    [(0, 0), (10_000, 0), (10_001, 1), (100_000_000, 10), (10**12, len(BUCKETS))],
)
def test_buckets_include_their_upper_bound_as_in_prometheus(nanoseconds, place):
    timer = KernelTimer()
    timer.add("gather", nanoseconds)
    found = timer.timings["gather"]
    assert len(found) == len(BUCKETS) + 1
    assert found[place] == [1, nanoseconds]
