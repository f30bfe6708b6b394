"""Measure, when a layer is loaded, which way is fastest for every number of tokens.

Before anything is compiled or captured: the first layer of each shape is measured on
its own weight, others take its table, and so does the next start on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from vllm.logger import init_logger

from nmsparse.ops.linear.tiles import GatherTiles, candidates
from vllm_sparse.gpu.choice import (
    DENSE,
    GATHER,
    MASKED_PACKED,
    PACKED,
    SHARED,
    SHARED_TOKENS,
    Plan,
)
from vllm_sparse.gpu.clock import Clock, clock_of
from vllm_sparse.gpu.linear import GpuLinear
from vllm_sparse.gpu.machine import context
from vllm_sparse.gpu.ways import Terms, run
from vllm_sparse.gpu.weights import copy_of
from vllm_sparse.phases import Masks
from vllm_sparse.table import MIN_GAIN, TOKENS, TableCache, Times, cache_folder

logger = init_logger("vllm." + __name__)

# Bytes of weights that are rotated: several times the largest cache of a GPU.
_ROTATED = 256 << 20
_MOST_COPIES = 128
# Of the memory nobody uses, the share that copies may take.
_SHARE = 0.25
# Forms of tiles that are still tried at the next number of tokens.
_FORMS = 4

# Measured in this process, by everything a table depends on.
_TABLES: dict[str, Times] = {}


def tune(linear: GpuLinear, terms: Terms, label: str) -> Times:
    """Return a layer's table: of its shape, of this machine, or measured now.

    Args:
        linear: what will run the layer.
        terms: the layer.
        label: what decides the cost beside its shape.

    Returns:
        Seconds by way, by number of tokens; empty where nothing is measured: with
        ``kernels: on``, and on other devices than GPUs.
    """
    clock = None if linear.always else clock_of(terms.rows.device)
    if clock is None:
        return {}
    key = table_key(linear, terms, label)
    found = _TABLES.get(key)
    if found is None:
        found = _TABLES[key] = _recall(key, linear, terms, clock)
    # Sparse layers are the same ones on all ranks; a packed copy is each rank's own.
    found = agreed(found) if linear.sparse else found
    if terms.packed is not None:
        return found
    without = (PACKED, MASKED_PACKED)
    return {
        t: {k: s for k, s in x.items() if k not in without} for t, x in found.items()
    }


def agreed(times: Times) -> Times:
    """Return the first tensor-parallel rank's table.

    Ranks that chose for themselves would compute parts of one product in different
    ways, by chance. Every rank must come here for every sparse layer.
    """
    from vllm.distributed import get_tp_group, model_parallel_is_initialized

    if not model_parallel_is_initialized() or get_tp_group().world_size == 1:
        return times
    found: Times = get_tp_group().broadcast_object(times, src=0)
    return found


def table_key(linear: GpuLinear, terms: Terms, label: str) -> str:
    """Return what a table depends on, beside machine and versions."""
    channels, outputs = terms.rows.shape
    words = ["gpu", f"{channels}x{outputs}", str(terms.rows.dtype), label, linear.first]
    if terms.packed is not None:
        words.append(f"packed {linear.weights.sparsity:.1f}")
    if linear.shared:
        words.append(SHARED)
    return " ".join(words)


def _recall(key: str, linear: GpuLinear, terms: Terms, clock: Clock) -> Times:
    """Return a table from the machine's cache; measure it if it is not there."""
    cache = TableCache(cache_folder(), context(clock))
    times = cache.get(key)
    if times is None:
        start = time.perf_counter()
        try:
            times = measure_layer(linear, terms, clock)
        except Exception as error:  # a server that starts is worth more than a table
            logger.warning_once(
                "vllm-sparse: %s could not be measured, so no kernel of ours runs it: "
                "%s",
                key,
                error,
            )
            return {}  # for this process; the next start measures again
        finally:
            clock.release()
        cache.put(key, times)
        seconds = time.perf_counter() - start
        logger.info(
            "vllm-sparse: measured %s in %.1f s; remembered in %s",
            key,
            seconds,
            cache.path,
        )
    return times


def measure_layer(linear: GpuLinear, terms: Terms, clock: Clock) -> Times:
    """Time every way of a layer, for all numbers of tokens of the table.

    Tiles that are slow for few tokens are not tried for more, and neither is a way that
    has lost: a list for each token reads more rows with every token.
    """
    device = terms.rows.device
    masks = Masks(*(torch.ones(TOKENS[-1], dtype=torch.bool, device=device),) * 2)
    counters = torch.zeros(2, dtype=torch.int64, device=device)
    layers = rotated(terms, clock.free_bytes())
    generator = torch.Generator(device).manual_seed(0)
    shape = (len(layers), TOKENS[-1], terms.rows.shape[0])
    # float32 by name: vLLM sets the model's as the default while it loads.
    inputs = torch.randn(
        shape, generator=generator, device=device, dtype=torch.float32
    ).to(terms.rows.dtype)

    def seconds(plan: Plan, tokens: int) -> float:
        return clock.seconds(
            [
                partial(run, x[:tokens], plan, layer, masks, counters)
                for x, layer in zip(inputs, layers, strict=True)
            ]
        )

    searches = [_Search(GATHER, terms, clock)] if linear.sparse else []
    if linear.sparse and linear.shared:
        searches.append(_Search(SHARED, terms, clock))
    times: Times = {}
    problems: list[Exception] = []
    for tokens in TOKENS:
        first = seconds(Plan(linear.first), tokens)
        found = times[tokens] = {linear.first: first}
        if terms.packed is not None:
            way = PACKED if linear.first == DENSE else MASKED_PACKED
            taken = _try(partial(seconds, Plan(way), tokens), problems)
            if taken is not None:
                found[way] = taken
        for search in searches:
            mine: dict[GatherTiles, float] = {}
            for tiles in search.tiles(tokens):
                taken = _try(
                    partial(seconds, Plan(search.way, tiles), tokens), problems
                )
                if taken is not None:
                    mine[tiles] = taken
            if search.is_new and not mine:
                logger.warning_once(
                    "vllm-sparse: %s runs with no tiles on this GPU, so it is not "
                    "used: %s",
                    search.way,
                    problems[0] if problems else "there are none to try",
                )
            search.learn(mine, first)
            found |= {str(Plan(search.way, t)): s for t, s in mine.items()}
    return times


class _Search:
    """Which tiles of one way are worth a try, from what fewer tokens have shown."""

    def __init__(self, way: str, terms: Terms, clock: Clock) -> None:
        self.way = way
        channels, outputs = terms.rows.shape
        self._sizes = (
            channels // terms.group * terms.kept,
            outputs,
            terms.rows.element_size(),
            clock.multiprocessors,
        )
        self._forms: list[tuple[int, ...]] = []
        self._lost = False

    @property
    def is_new(self) -> bool:
        """Whether nothing has run yet that could have."""
        return not self._forms and self.way == GATHER

    def tiles(self, tokens: int) -> Iterator[GatherTiles]:
        """Yield tiles to try."""
        shared = self.way == SHARED
        if self._lost or (shared and tokens not in SHARED_TOKENS):
            return
        for place, tiles in enumerate(candidates(tokens, *self._sizes, shared=shared)):
            if not place or not self._forms or _form(tiles) in self._forms:
                yield tiles

    def learn(self, seconds: dict[GatherTiles, float], first: float) -> None:
        """Remember the best forms, and whether the way has lost to the first one."""
        if not seconds:
            return
        best = sorted(seconds, key=seconds.__getitem__)
        self._forms = list(dict.fromkeys(map(_form, best)))[:_FORMS]
        # A shared list reads its rows once, however many tokens there are.
        self._lost = self.way == GATHER and first < MIN_GAIN * seconds[best[0]]


def _form(tiles: GatherTiles) -> tuple[int, ...]:
    """Return what of tiles does not follow from the number of tokens."""
    return tiles.block_o, tiles.block_k, tiles.warps, tiles.stages


def _try(call: partial[float], problems: list[Exception]) -> float | None:
    """Return what a way takes; None, and one problem more, if it cannot run here."""
    try:
        return call()
    except Exception as error:
        # Tiles may ask for more shared memory than there is; Triton says so in its own
        # exceptions. What nothing can run, the first way does.
        plan = call.args[0]
        logger.debug("vllm-sparse: %s cannot be measured: %s", plan, error)
        problems.append(error)
        return None


def rotated(terms: Terms, free_bytes: int) -> list[Terms]:
    """Return a layer and copies of it, so many that no cache holds all of them.

    Args:
        terms: the layer.
        free_bytes: memory nobody uses; where it is short there are fewer copies.
    """
    size = terms.rows.nbytes + (0 if terms.packed is None else terms.packed.nbytes)
    wanted = min(_MOST_COPIES, -(-_ROTATED // max(1, size)))
    room = 1 + int(_SHARE * free_bytes) // max(1, size)
    return [terms] + [
        replace(terms, rows=terms.rows.clone(), packed=copy_of(terms.packed))
        for _ in range(min(wanted, room) - 1)
    ]


def warm_up(
    linear: GpuLinear, terms: Terms, masks: Masks, bias: torch.Tensor | None
) -> None:
    """Run every sparse step once: kernels are compiled, and scratch memory is grown.

    Neither is possible while a CUDA graph is captured. Other devices have no graphs.
    """
    device = terms.rows.device
    if device.type != "cuda":
        return
    terms = replace(terms, bias=bias)
    counters = torch.zeros(2, dtype=torch.int64, device=device)
    x = torch.zeros(TOKENS[-1], len(terms.rows), dtype=terms.rows.dtype, device=device)
    for tokens in range(1, TOKENS[-1] + 1):
        run(x[:tokens], linear.plan(tokens), terms, masks, counters)
