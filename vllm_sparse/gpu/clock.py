"""``Clock``: how long calls take on a GPU. Tests put another one in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

_ROUNDS = 7
# Calls of one replay at least: events resolve about half a microsecond.
_CALLS = 20


class Clock:
    """Time calls as a CUDA graph replays them: without the host between them.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # One for all measurements: cuBLAS keeps memory for every stream it has seen.
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()

    @property
    def name(self) -> str:
        """Name of the device."""
        return str(torch.cuda.get_device_name(self.device))

    @property
    def multiprocessors(self) -> int:
        """Multiprocessors of the device."""
        found = torch.cuda.get_device_properties(self.device)
        return int(found.multi_processor_count)

    def free_bytes(self) -> int:
        """Return the memory nobody has asked for, and what torch holds unused."""
        free, _ = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_reserved(self.device)
        return free + held - torch.cuda.memory_allocated(self.device)

    def release(self) -> None:
        """Give back memory that is not used any more: engines count what is free."""
        # What cuBLAS keeps for our stream; torch's own graphs clear it so.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()

    def seconds(self, calls: Sequence[Callable[[], object]]) -> float:
        """Return the least seconds of one call, over rounds that run all of them.

        The least: other work on the machine only ever adds time.

        Args:
            calls: the same work on several weights, so that a weight is not in a cache
                because the last call read it.
        """
        rounds = -(-_CALLS // len(calls))
        with torch.cuda.device(self.device):
            stream, graph = self._stream, torch.cuda.CUDAGraph()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for call in calls:  # compiles and allocates what it needs
                    call()
                torch.cuda.synchronize()
                # Not torch.cuda.graph: it empties the allocator's caches every time.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    for _ in range(rounds):
                        for call in calls:
                            call()
                finally:
                    graph.capture_end()
                found = [self._replay(graph, stream) for _ in range(_ROUNDS + 1)]
            torch.cuda.current_stream().wait_stream(stream)
        return min(found[1:]) / (rounds * len(calls))

    def _replay(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        graph.replay()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


@lru_cache(maxsize=16)
def clock_of(device: torch.device) -> Clock | None:
    """Return a device's clock; None where nothing is measured."""
    return Clock(device) if device.type == "cuda" else None
