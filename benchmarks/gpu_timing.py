"""Times of GPU work: CUDA graphs that rotate over copies, replayed in turns.

A graph holds many calls, each with the next copy of the weight, so that no call finds
its weight in the L2 cache and no time is spent on launching from Python.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# A graph has at least so many calls, and a sample lasts at least so long.
CALLS = 20
SAMPLE_S = 0.002
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Captured:
    """Calls in a CUDA graph.

    Attributes:
        graph: what is replayed.
        calls: calls in it.
    """

    graph: torch.cuda.CUDAGraph
    calls: int

    def sample(self, replays: int) -> float:
        """Return seconds per call.

        One replay that is not timed keeps the GPU busy until all others are queued, so
        that the time has no gap of this process in it.
        """
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.graph.replay()
        begin.record()
        for _ in range(replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000 / (replays * self.calls)

    def replays(self) -> int:
        """Return how many replays make a sample."""
        return max(2, math.ceil(SAMPLE_S / (self.sample(1) * self.calls)))


def capture(run: Callable[[int], Any], copies: int) -> Captured:
    """Capture calls of ``run``, each with its number.

    Args:
        run: does its work on the current stream, without waiting for it.
        copies: every copy takes part equally often.
    """
    calls = copies * max(1, math.ceil(CALLS / copies))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and makes workspaces
        for number in range(min(calls, 3)):
            run(number)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(calls):
            run(number)
    return Captured(graph, calls)


def quick(run: Callable[[int], Any], copies: int) -> float:
    """Return seconds per call, the best of three samples: to choose among tiles."""
    captured = capture(run, copies)
    replays = captured.replays()
    return min(captured.sample(replays) for _ in range(3))


class Copy:
    """A copy within the GPU's memory: the bandwidth that others are compared with."""

    def __init__(self, nbytes: int = 512 * MIB) -> None:
        self._source = torch.ones(nbytes, dtype=torch.uint8, device="cuda")
        self._target = torch.empty_like(self._source)
        self._captured = capture(lambda _: self._target.copy_(self._source), 1)

    def bandwidth(self) -> float:
        """Return bytes a second, read and written."""
        return 2 * self._source.nbytes / self._captured.sample(1)


def in_turns(
    modes: dict[str, Captured], copy: Copy, rounds: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Sample every mode once a round, in another random order every round.

    Returns:
        Seconds per call of every mode, and bandwidths of the copy, one of each round.
    """
    replays = {name: captured.replays() for name, captured in modes.items()}
    samples: dict[str, list[float]] = {name: [] for name in modes}
    bandwidths = []
    order = list(modes)
    gc.collect()
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            samples[name].append(modes[name].sample(replays[name]))
        bandwidths.append(copy.bandwidth())
    return samples, bandwidths
