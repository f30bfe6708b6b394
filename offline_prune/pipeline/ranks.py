"""Processes that share a calibration: each has its part of the windows.

Started with ``torchrun``; every process computes the same reduced statistics, prunes
the same weights, and the first one writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from offline_prune.statistics.inputs import InputStatistics

T = TypeVar("T")


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
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> list[T]:
        """Return this process's contiguous part of ``items``."""
        start = len(items) * self.rank // self.count
        stop = len(items) * (self.rank + 1) // self.count
        return list(items[start:stop])

    def total(self, count: int) -> int:
        """Return the sum of ``count`` over the processes."""
        if self.count == 1:
            return count
        value = torch.tensor([count])
        dist.all_reduce(value)
        return int(value)

    def before(self, count: int) -> int:
        """Return the sum of ``count`` over the processes before this one."""
        if self.count == 1:
            return 0
        counts = torch.zeros(self.count, dtype=torch.int64)
        counts[self.rank] = count
        dist.all_reduce(counts)
        return int(counts[: self.rank].sum())

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
