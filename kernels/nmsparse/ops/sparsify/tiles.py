"""How the selection kernels of a GPU cut their work."""

from __future__ import annotations

from dataclasses import dataclass

# Larger groups are for the row kernel: ranks are counted over pairs of channels.
MAX_GROUP = 64
# Channels that a program reads at a time for the mean of a row.
MEAN_BLOCK = 1024
# Pairs of channels that a program compares at a time, and channels it holds.
_PAIRS = 4096
_CHANNELS = 512
# Programs of a launch; with more work each one takes several runs of groups.
_PROGRAMS = 4096
# Keys that a program of the row kernel holds in registers, and channels per pass.
_HELD = 16384
_SPAN = 4096


@dataclass(frozen=True, slots=True)
class GroupTiles:
    """Cut of a token for the groups kernel.

    Attributes:
        padded: M, rounded up to a power of two.
        groups: groups of one run.
        steps: runs of one program.
        parts: programs of one token.
    """

    padded: int
    groups: int
    steps: int
    parts: int


@dataclass(frozen=True, slots=True)
class RowTiles:
    """Cut of a group for the row kernel.

    Attributes:
        held: keys in registers while the threshold is found.
        span: channels of one pass over the group.
        warps: of a program.
    """

    held: int
    span: int
    warps: int


def group_tiles(tokens: int, channels: int, group: int) -> GroupTiles:
    """Return the cut for T tokens of K channels in groups of M <= MAX_GROUP."""
    padded = power_of_two(group)
    total = channels // group
    groups = min(_PAIRS // padded**2, _CHANNELS // padded, power_of_two(total))
    runs = -(-total // groups)
    steps = min(runs, -(-tokens * runs // _PROGRAMS))
    return GroupTiles(padded, groups, steps, -(-runs // steps))


def shared_tiles(channels: int, group: int) -> GroupTiles:
    """Return the cut of K channels, for all tokens at once: one run a program."""
    return group_tiles(1, channels, group)


def row_tiles(group: int) -> RowTiles:
    """Return the cut for groups of M > MAX_GROUP."""
    held = min(power_of_two(group), _HELD)
    warps = 4 if held <= 1024 else 8 if held <= 4096 else 16
    return RowTiles(held, min(held, _SPAN), warps)


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least ``size``."""
    return 1 << max(0, size - 1).bit_length()
