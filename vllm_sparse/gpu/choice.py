"""Which way a step runs, from its number of tokens alone: names, plans, the rule.

Decided on the host from shapes, so it is legal and settled when a CUDA graph is
captured. A way's name says all of it, tiles included, so that a measured table is plain
text: ``gather 128x32x8 w4 s1`` has tiles of 128 outputs and 32 entries, 8 splits,
4 warps, 1 stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nmsparse.ops.linear.tiles import GatherTiles
from vllm_sparse.table import TOKENS, Times, choose

DENSE, MASKED, GATHER, SHARED = "dense", "masked", "gather", "shared"
PACKED, MASKED_PACKED = "packed", "masked+packed"
# Steps that may share a list of channels.
SHARED_TOKENS = range(3, TOKENS[-1] + 1)
# What gathers without having been measured: beyond it a weight is read several times.
UNMEASURED = 2
# Dense steps: never.
NEVER = -1

_TILES = re.compile(r"(\w+) (\d+)x(\d+)x(\d+) w(\d+) s(\d+)")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a step runs.

    Attributes:
        way: ``dense``, ``masked``, ``gather``, ``shared``, ``packed`` or
            ``masked+packed``.
        tiles: of ``gather`` and ``shared``; None for those the kernel takes by itself.
    """

    way: str
    tiles: GatherTiles | None = None

    def __str__(self) -> str:
        if self.tiles is None:
            return self.way
        t = self.tiles
        return f"{self.way} {t.block_o}x{t.block_k}x{t.splits} w{t.warps} s{t.stages}"

    @classmethod
    def parse(cls, name: str) -> Plan:
        """Return the plan of a name; a name without tiles is a way."""
        found = _TILES.fullmatch(name)
        if found is None:
            return cls(name)
        return cls(found[1], GatherTiles(*map(int, found.groups()[1:])))


def first_way(dense_above: int) -> Plan:
    """Return the way that is left only for a clear win."""
    return Plan(MASKED if dense_above == NEVER else DENSE)


def choose_plan(
    times: Times, tokens: int, *, always: bool, shared: bool, dense_above: int
) -> Plan:
    """Return how a step of a sparse layer runs.

    Args:
        times: measured seconds of ways by their names; empty if not measured.
        tokens: rows of the step, padding included.
        always: gather few tokens without having measured it.
        shared: whether tokens may share a list.
        dense_above: steps of more tokens run dense, and others where no sparse way
            wins; :data:`NEVER`: all steps are sparse.
    """
    first = first_way(dense_above)
    if tokens > TOKENS[-1] or NEVER < dense_above < tokens:
        return first
    shares = shared and tokens in SHARED_TOKENS
    if always:
        if tokens <= UNMEASURED:
            return Plan(GATHER)
        return Plan(SHARED) if shares else first
    allowed = {first.way, GATHER, PACKED if first.way == DENSE else MASKED_PACKED}
    if shares:
        allowed.add(SHARED)
    step = next(t for t in TOKENS if tokens <= t)
    among = ways_named(times.get(step, {}), allowed)
    return Plan.parse(choose(times, first.way, tokens, among))


def choose_product(times: Times, tokens: int) -> Plan:
    """Return how a step of a layer runs whose input stays dense."""
    return Plan.parse(choose(times, DENSE, tokens, [DENSE, PACKED]))


def ways_named(names: Iterable[str], ways: Iterable[str]) -> list[str]:
    """Return the names of plans whose way is one of these."""
    wanted = set(ways)
    return [name for name in names if name.partition(" ")[0] in wanted]
