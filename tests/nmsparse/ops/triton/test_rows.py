"""Lists and masks of large groups and whole rows: exactly the reference's choice."""

from __future__ import annotations

import math

import pytest
import torch
from support.selections import (
    DTYPES,
    assert_lists,
    bits,
    parts_of,
    permutation,
    random,
    reference,
)

from nmsparse.ops.sparsify import tiles
from nmsparse.ops.sparsify.lists_triton import list_tokens, mask_tokens


@pytest.fixture(params=["held", "in pieces"])
def cut(request, monkeypatch):
    """Run with a group that fits the registers, and with one that does not."""
    if request.param == "in pieces":
        monkeypatch.setattr(tiles, "_HELD", 64)
        monkeypatch.setattr(tiles, "_SPAN", 32)
        assert tiles.row_tiles(100).held == 64


@pytest.mark.usefixtures("poisoned_memory", "cut")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("kept", "group", "channels"),
    [(64, 128, 256), (25, 70, 210), (1, 130, 130), (129, 130, 130), (65, 65, 130)],
)
def test_lists_are_the_references(kept, group, channels, dtype, device):
    for coarse in (False, True):
        x = random(2, channels, dtype=dtype, coarse=coarse).to(device)
        assert_lists(list_tokens(x, kept=kept, group=group), x, kept, group)
        values = mask_tokens(x, kept=kept, group=group).values
        assert torch.equal(bits(values), bits(reference(x, kept, group)[1]))


@pytest.mark.usefixtures("poisoned_memory", "cut")
@pytest.mark.parametrize("grouped", [False, True], ids=["plain", "channel groups"])
@pytest.mark.parametrize("group", [66, 132])
def test_corrections_and_dense_tokens(grouped, group, device):
    x = random(2, 132, dtype=torch.bfloat16, seed=2, coarse=True).to(device)
    for names in (
        ("factor", "token_shift"),
        ("factor", "channel_shift", "statistic", "variance"),
    ):
        given = parts_of(names, 2, 132, device)
        if grouped:
            given["channel_groups"] = permutation(132, device)
            given["sparse"] = torch.tensor([True, False], device=device)
        found = list_tokens(x, kept=group // 4, group=group, **given)
        assert_lists(found, x, group // 4, group, **given)
        values = mask_tokens(x, kept=group // 4, group=group, **given).values
        expected = reference(x, group // 4, group, **given)[1]
        assert torch.equal(bits(values), bits(expected))


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize(
    "levels", [[1.0], [0.0, -0.0], [1.0, -1.0, 2.0], [math.nan, math.inf, 1.0]]
)
def test_ties_go_to_lower_positions_across_pieces(levels, device):
    pick = torch.Generator().manual_seed(3)
    chosen = torch.randint(len(levels), (2, 150), generator=pick)
    x = torch.tensor(levels)[chosen].to(device)
    for kept in (1, 31, 32, 33, 75, 149):
        assert_lists(list_tokens(x, kept=kept, group=150), x, kept, 150)


def test_the_longest_row(device):
    x = random(1, 65536, dtype=torch.float16, seed=4).to(device)
    found = list_tokens(x, kept=20000, group=65536)
    assert found.indices.dtype is torch.int32
    assert_lists(found, x, 20000, 65536)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_keys_of_16_bits(dtype, device):
    # The largest key is a NaN with all bits set, the smallest zero.
    # Whole vectors of them: in a tail torch's abs makes all NaNs of bfloat16 one.
    number = torch.arange(-(1 << 15), 1 << 15, 17, dtype=torch.int16)[:3836]
    ends = torch.tensor([-1, 32767, 0, -32768], dtype=torch.int16)
    x = torch.cat((number, ends)).view(dtype)[None].to(device)
    for kept in (1, 2, 3, 1000, x.shape[1] - 1):
        found = list_tokens(x, kept=kept, group=x.shape[1])
        assert_lists(found, x, kept, x.shape[1])
