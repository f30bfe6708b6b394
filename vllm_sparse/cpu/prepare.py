"""Measure, once the weights are loaded, which way is fastest for every layer."""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from vllm.logger import init_logger

from nmsparse.native import library
from vllm_sparse import __version__
from vllm_sparse.compat import installed_vllm
from vllm_sparse.cpu.head import StreamedHead
from vllm_sparse.cpu.linear import CpuLinear
from vllm_sparse.table import TOKENS, TableCache, Times, cache_folder, measure

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = init_logger("vllm." + __name__)

# Layers of one shape whose weights are rotated while it is measured.
_ROTATED = 8

Timed = CpuLinear | StreamedHead


def prepare(layers: Iterable[Timed]) -> None:
    """Give every layer its measured table, from the machine's cache where it has one.

    Args:
        layers: linear layers and heads of this process.
    """
    same: defaultdict[str, list[Timed]] = defaultdict(list)
    for layer in layers:
        same[layer.key].append(layer)
    if not same:
        return
    cache = TableCache(cache_folder(), _context())
    start = time.perf_counter()
    measured = 0
    for key, group in same.items():
        times = cache.get(key)
        if times is None:
            times = measure_layers(group[:_ROTATED])
            cache.put(key, times)
            measured += 1
        for layer in group:
            layer.set_times(times)
    if measured:
        logger.info(
            "vllm-sparse: measured %d layer shapes in %.1f s; remembered in %s",
            measured,
            time.perf_counter() - start,
            cache.path,
        )


def measure_layers(layers: Sequence[Timed]) -> Times:
    """Time every way of layers of one shape, for all token counts of the table."""
    times: Times = {}
    generator = torch.Generator().manual_seed(0)
    for tokens in TOKENS:
        x = torch.randn(tokens, layers[0].in_features, generator=generator)
        x = x.to(layers[0].dtype)
        ways = [layer.timed(x) for layer in layers]
        times[tokens] = measure({name: [w[name] for w in ways] for name in ways[0]})
    return times


def _context() -> dict[str, Any]:
    """Return what measured times depend on, besides the layer."""
    return {
        "cpu": _cpu_name(),
        "isa": library.status().isa,
        "threads": torch.get_num_threads(),
        "torch": metadata.version("torch"),
        "vllm": installed_vllm(),
        "vllm_sparse": __version__,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:  # noqa: PTH123
            lines = [x.partition(":") for x in info]
        return next(v.strip() for k, _, v in lines if k.strip() == "model name")
    except (OSError, StopIteration):
        return platform.machine()
