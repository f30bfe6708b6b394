"""Processes that share a calibration: each has its part of the windows.

Started with ``torchrun``; every process computes the same reduced statistics, prunes
the same weights, and the first one writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from offline_prune.statistics.inputs import InputStatistics

T = TypeVar("T")

# The others wait while the first process writes the model.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of this run.

    Attributes:
        rank: number of this process.
        count: number of processes; 1 without ``torchrun``.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> Ranks:
        """Join the processes that ``torchrun`` announces in the environment."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            # Counts are on the CPU, statistics where the blocks are.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> list[T]:
        """Return this process's part of ``items``: every ``count``-th.

        So the first few of all items are the first few of every process.
        """
        return list(items[self.rank :: self.count])

    def index(self, position: int) -> int:
        """Return the place among all items of one of this process's part."""
        return self.rank + position * self.count

    def among_first(self, most: int) -> int:
        """Return how many of the first ``most`` items are in this process's part."""
        return len(range(self.rank, most, self.count))

    def total(self, count: int) -> int:
        """Return the sum of ``count`` over the processes."""
        if self.count == 1:
            return count
        value = torch.tensor([count])
        dist.all_reduce(value)
        return int(value)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums of values over the processes, one by one."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def reduce(self, statistics: InputStatistics) -> None:
        """Sum statistics over the processes, in place."""
        if self.count > 1:
            statistics.all_reduce()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()
