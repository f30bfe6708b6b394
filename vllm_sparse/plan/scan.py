"""The memory bandwidth of this machine's CPU: one endless read by a kernel of ours."""

from __future__ import annotations

import os
import statistics
import time

import torch

from nmsparse.native import library
from nmsparse.native.abi import kernels
from nmsparse.native.memory import streamed_empty

_ROUNDS = 7
# Much more than a cache holds.
_BYTES = 512 << 20


class Scan:
    """Reads memory from end to end: the bandwidth that others are compared with.

    Args:
        nbytes: how much is read.
        threads: by how many threads.
    """

    def __init__(self, nbytes: int, threads: int) -> None:
        self._data = streamed_empty((nbytes // 4,), torch.float32).fill_(1)
        self._threads = threads

    def run(self) -> None:
        """Read everything once."""
        kernels().nms_scan(self._data.data_ptr(), self._data.numel(), self._threads)

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return self._data.nbytes


def read_bandwidth(threads: int | None = None, nbytes: int = _BYTES) -> float:
    """Return bytes a second, the median of a few reads.

    Args:
        threads: all cores of this process by default.
        nbytes: how much is read each time.

    Raises:
        RuntimeError: if there are no CPU kernels.
    """
    found = library.status()
    if not found.available:
        raise RuntimeError(
            f"The bandwidth of this CPU cannot be measured: {found.reason}. Expected "
            "compiled kernels: give --bandwidth instead."
        )
    scan = Scan(nbytes, threads or len(os.sched_getaffinity(0)))
    scan.run()
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        scan.run()
        seconds.append(time.perf_counter() - start)
    return scan.nbytes / statistics.median(seconds)
