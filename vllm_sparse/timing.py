"""How long sampled calls of layers take (``--kernel-timing``), on a CPU.

On a GPU a layer's kernels run when the host has gone on, most of them inside a replayed
graph: nothing can be timed there without waiting for the device.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vllm_sparse.cpu.linear import CpuLinear

# Upper bounds in seconds, of the histogram on /metrics too.
BUCKETS = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 0.1)
_BOUNDS = tuple(round(seconds * 1e9) for seconds in BUCKETS)
# One call of so many is timed. A prime: every layer of a model has its turn.
EVERY = 61

# By op, for every bucket and what is above: number of samples, and their nanoseconds.
Timings = dict[str, list[list[int]]]


class KernelTimer:
    """Time one call of ``EVERY`` of the layers that it watches.

    Attributes:
        timings: what was found.
    """

    def __init__(self) -> None:
        self.timings: Timings = {}
        self._calls = 0

    def watch(self, linear: CpuLinear) -> None:
        """Time calls of ``linear.run`` from now on."""
        run = linear.run

        def timed(
            x: torch.Tensor, bias: torch.Tensor | None, counters: torch.Tensor
        ) -> torch.Tensor:
            self._calls += 1
            if self._calls % EVERY or not linear.counts(x):
                return run(x, bias, counters)
            way = linear.outcome(x).way
            start = time.perf_counter_ns()
            y = run(x, bias, counters)
            self.add(way, time.perf_counter_ns() - start)
            return y

        linear.run = timed  # type: ignore[method-assign]

    def add(self, op: str, nanoseconds: int) -> None:
        """Note one sample."""
        found = self.timings.setdefault(op, [[0, 0] for _ in (*BUCKETS, None)])
        bucket = found[bisect_left(_BOUNDS, nanoseconds)]
        bucket[0] += 1
        bucket[1] += nanoseconds

    def reset(self) -> None:
        """Begin anew."""
        self.timings, self._calls = {}, 0
