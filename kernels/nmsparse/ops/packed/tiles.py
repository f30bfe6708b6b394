"""How a packed product is cut into programs on a GPU.

A program owns a block of rows and walks all of K, so nothing is summed across programs
and no order can change. What remains to choose is how many rows a block has: few rows
make many programs, which hide the latency of memory by being many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

# One token: a warp a row. A warp needs no barrier, and its 32 lanes hold 16 channels
# each. Fewer rows than warps that a GPU can hold at once share them.
_LANES = 512
_WARPS_HELD = 32
_MAX_WARPS = 4
# Several tokens: rows are a side of a matrix product, which needs 16. Each program
# reads the tokens again, so larger blocks come first.
_DOT_ROWS = (64, 32, 16)
_DOT_PROGRAMS = 2
_DOT_PIECE = 2048
# By position lists (group_packed_triton.py): rows share a look at all of x.
_LISTED_ROWS = 4
_LISTED_PIECE = 1024


@dataclass(frozen=True, slots=True)
class PackedTiles:
    """Shape of a program.

    Attributes:
        block_o: rows of the weight; a power of two, at least 16 for several tokens.
        block_k: channels of a step; a power of two, at least 64.
        warps: of 32 threads.

    Raises:
        ValueError: if a size is no power of two, or too small.
    """

    block_o: int
    block_k: int
    warps: int = _MAX_WARPS

    def __post_init__(self) -> None:
        sizes = {
            "block_o": (self.block_o, 1),
            "block_k": (self.block_k, 64),
            "warps": (self.warps, 1),
        }
        for name, (size, least) in sizes.items():
            if size < least or size & (size - 1):
                raise ValueError(
                    f"PackedTiles: {name} is {size}. Expected a power of two, at least "
                    f"{least}."
                )


def default_tiles(
    tokens: int, out_features: int, in_features: int, processors: int
) -> PackedTiles:
    """Return tiles that give every multiprocessor several programs, if O allows it.

    Args:
        tokens: T.
        out_features: O.
        in_features: K.
        processors: multiprocessors of the device.
    """
    whole = max(64, 1 << max(0, in_features - 1).bit_length())
    if tokens == 1:
        warps = 1
        while warps < _MAX_WARPS and out_features * warps < _WARPS_HELD * processors:
            warps *= 2
        return PackedTiles(1, min(_LANES * warps, whole), warps)
    enough = (r for r in _DOT_ROWS if out_features >= r * _DOT_PROGRAMS * processors)
    rows = next(enough, _DOT_ROWS[-1])
    return PackedTiles(rows, max(64, min(_DOT_PIECE // rows, whole)))


def listed_tiles(in_features: int) -> PackedTiles:
    """Return tiles of the product by position lists."""
    whole = max(64, 1 << max(0, in_features - 1).bit_length())
    return PackedTiles(_LISTED_ROWS, min(_LISTED_PIECE, whole))


@lru_cache(maxsize=64)
def processors_of(device: torch.device) -> int:
    """Return the multiprocessors of a GPU; 1 for a CPU, where Triton interprets."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
