"""Tiles: valid for every shape, and enough programs for the device."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from nmsparse.ops.linear.tiles import GatherTiles, candidates, default_tiles

SHAPES = [
    # listed, outputs: layers of large and small models, and odd ones
    (2048, 14336),
    (2048, 28672),
    (7168, 4096),
    (2048, 6144),
    (2048, 4096),
    (2048, 1024),
    (448, 896),
    (16384, 2048),
    (1, 1),
    (33, 7),
    (1021, 4099),
]
CASES = list(product(SHAPES, (1, 2, 7, 16, 100), (1, 2, 4), (False, True)))


def chunks(tiles, listed):
    return -(-listed // tiles.block_k)


@pytest.mark.parametrize("sms", [1, 60, 132])
def test_every_candidate_is_valid(sms):
    for (listed, outputs), tokens, itemsize, shared in CASES:
        found = candidates(tokens, listed, outputs, itemsize, sms, shared=shared)
        sizes = (tokens, listed, outputs, itemsize, sms)
        assert found[0] == default_tiles(*sizes, shared=shared)
        assert len(found) == len(set(found))
        assert 7 <= len(found) <= 20
        for tiles in found:
            # A program without work only where the list is shorter than one block.
            assert tiles.splits <= max(1, chunks(tiles, listed))
            # Rows in whole cache lines; registers for the sums, and for loads.
            assert tiles.block_o * itemsize >= 64
            if shared:
                assert tiles.block_k >= 16
                assert tiles.block_o >= 16
                shared_bytes = tiles.stages * tiles.block_k * (tiles.block_o + 16)
                assert shared_bytes * itemsize <= 160 << 10
            else:
                assert tiles.block_o * tiles.block_k <= 128 * 32 * tiles.warps


def test_every_split_has_work():
    """The kernel's cut of a list, for every candidate."""
    for (listed, outputs), tokens, itemsize, shared in CASES:
        for tiles in candidates(tokens, listed, outputs, itemsize, 132, shared=shared):
            count = chunks(tiles, listed)
            edges = [count * s // tiles.splits for s in range(tiles.splits + 1)]
            assert (edges[0], edges[-1]) == (0, count)
            shares = [b - a for a, b in pairwise(edges)]
            assert min(shares) >= 1
            assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
@pytest.mark.parametrize("itemsize", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_defaults_fill_the_device(shape, itemsize, shared):
    tokens = 8 if shared else 1
    tiles = default_tiles(tokens, *shape, itemsize, 132, shared=shared)
    waves = tiles.programs(tokens, shape[1], shared=shared) * tiles.splits / 132
    # Fewer where a split would leave a program of the smallest layer without work.
    short = tiles.splits == tiles.most_splits(shape[0])
    assert (0.2 if short else 3) <= waves <= 4


def test_many_tokens_need_no_splits():
    assert default_tiles(64, 2048, 14336, 2, 132).splits == 1


def test_one_token_of_a_wide_layer():
    assert default_tiles(1, 2048, 14336, 2, 132) == GatherTiles(256, 32, 9, 4, 1)


def test_programs():
    tiles = GatherTiles(64, 32, 3, 4, 1)
    assert tiles.programs(5, 65) == 10
    assert tiles.programs(17, 65, shared=True) == 4
    assert tiles.programs(0, 65) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block_o": 48}, "block_o is 48. Expected a power of two"),
        ({"block_k": 0}, "block_k is 0. Expected a power of two"),
        ({"splits": 0}, "splits is 0. Expected at least 1"),
        ({"warps": 3}, "warps is 3. Expected a power of two"),
        ({"stages": -1}, "stages is -1. Expected at least 1"),
    ],
)
def test_refuses(wrong, message):
    sizes = {"block_o": 64, "block_k": 32, "splits": 3, "warps": 4, "stages": 1}
    with pytest.raises(ValueError, match=message):
        GatherTiles(**{**sizes, **wrong})
