"""What every long run has: seconds by stage, a full disk as an error, its peak."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from offline_prune.pipeline.assemble import disk_full, is_full


@contextmanager
def full_disk(target: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what to do.

    Raises:
        InputError: if the disk of ``target`` is full.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise disk_full(target, str(error)) from None
        raise


class Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def hardware(device: torch.device) -> str:
    """Return what a run was computed on, for people to read."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads"


def peak_memory() -> int:
    """Return the process's largest resident size in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
