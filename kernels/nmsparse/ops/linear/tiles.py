"""Tile sizes of the gathered product on a GPU: a first guess, and what to try.

Pure functions of sizes: what is chosen for a shape can be read in a test.
"""

from __future__ import annotations

from dataclasses import dataclass

# Programs a multiprocessor should have: enough resident ones to keep loads in flight
# while others wait, and few enough that all of them are resident.
_WAVES = 4
# Each split adds a float32 row of partial sums that is written and read again.
_MAX_SPLITS = 32
_WARP = 32
# Float32 sums a thread holds by default, and at most: loads in flight need registers.
_SUMS = 64
_MAX_SUMS = 128
# Tokens that one program of the shared product serves: the smallest side of tl.dot.
SHARED_TOKENS = 16


@dataclass(frozen=True, slots=True)
class GatherTiles:
    """How a gathered product is cut into programs.

    Attributes:
        block_o: outputs of a program, a power of two.
        block_k: list entries that a program reads at a time, a power of two; at least
            16 for a shared list.
        splits: programs that share a list.
        warps: warps of a program, a power of two.
        stages: steps of the loop that are in flight: 1 loads to registers, more go
            through shared memory.
    """

    block_o: int
    block_k: int
    splits: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        for name in ("block_o", "block_k", "splits", "warps", "stages"):
            value = getattr(self, name)
            power = name not in ("splits", "stages")
            if value < 1 or (power and value & (value - 1)):
                raise ValueError(
                    f"GatherTiles: {name} is {value}. Expected "
                    f"{'a power of two' if power else 'at least 1'}: take one of "
                    "nmsparse.ops.linear.tiles.candidates."
                )

    def programs(self, tokens: int, outputs: int, *, shared: bool = False) -> int:
        """Return the programs of one split: each takes a ticket."""
        rows = -(-tokens // SHARED_TOKENS) if shared else tokens
        return rows * -(-outputs // self.block_o)

    def most_splits(self, listed: int) -> int:
        """Return how many programs can share a list so that none is idle."""
        return max(1, min(_MAX_SPLITS, -(-listed // self.block_k)))


def default_tiles(
    tokens: int,
    listed: int,
    outputs: int,
    itemsize: int,
    sms: int,
    *,
    shared: bool = False,
) -> GatherTiles:
    """Choose tiles from sizes alone.

    Args:
        tokens: T.
        listed: entries of a sparse token's list.
        outputs: O.
        itemsize: bytes of a weight.
        sms: multiprocessors of the device.
        shared: whether all tokens have one list.

    Returns:
        The widest tile of which splits can make enough programs for the device; the
        narrowest if none can.
    """
    block_k, stages = (64, 3) if shared else (32, 1)
    # 512 bytes of a row are 16 for each thread of a warp, and whole cache lines.
    widest = max(64, 512 // itemsize)
    if shared:
        # Eight bits become sixteen in registers, so bytes alone do not bound a tile.
        widest = min(widest, 128)
    for block_o in (widest, widest // 2, max(64, widest // 4)):
        warps = 4 if shared else max(4, block_k * block_o // (_SUMS * _WARP))
        form = GatherTiles(block_o, block_k, 1, warps, stages)
        enough = _WAVES * sms // max(1, form.programs(tokens, outputs, shared=shared))
        if enough <= form.most_splits(listed):
            break
    return _with_splits(form, _WAVES, tokens, listed, outputs, sms, shared)


def candidates(
    tokens: int,
    listed: int,
    outputs: int,
    itemsize: int,
    sms: int,
    *,
    shared: bool = False,
) -> list[GatherTiles]:
    """Return tiles worth measuring, the default first, without repeats.

    Args:
        tokens: T.
        listed: entries of a sparse token's list.
        outputs: O.
        itemsize: bytes of a weight.
        sms: multiprocessors of the device.
        shared: whether all tokens have one list.
    """
    sizes = (tokens, listed, outputs)
    found = [default_tiles(*sizes, itemsize, sms, shared=shared)]
    for form in _shared_forms() if shared else _token_forms(itemsize):
        for waves in (2, _WAVES):
            tiles = _with_splits(form, waves, *sizes, sms, shared)
            if tiles not in found:
                found.append(tiles)
    return found


def _token_forms(itemsize: int) -> list[GatherTiles]:
    """Return forms that read 256 to 1024 bytes of a row."""
    forms = []
    for width in (256, 512, 1024):
        for block_k, warps, stages in ((16, 4, 1), (32, 4, 1), (32, 8, 3)):
            block_o = max(32, width // itemsize)
            if block_o * block_k <= _MAX_SUMS * warps * _WARP:
                forms.append(GatherTiles(block_o, block_k, 1, warps, stages))
    return forms


def _shared_forms() -> list[GatherTiles]:
    return [
        GatherTiles(block_o, block_k, 1, 4, stages)
        for block_o in (64, 128)
        for block_k, stages in ((32, 4), (64, 2), (64, 3), (128, 2))
    ]


def _with_splits(
    form: GatherTiles,
    waves: int,
    tokens: int,
    listed: int,
    outputs: int,
    sms: int,
    shared: bool,
) -> GatherTiles:
    """Return the form with the splits that fill this many waves, or as many as can."""
    programs = max(1, form.programs(tokens, outputs, shared=shared))
    splits = max(1, min(waves * sms // programs, form.most_splits(listed)))
    return GatherTiles(form.block_o, form.block_k, splits, form.warps, form.stages)
