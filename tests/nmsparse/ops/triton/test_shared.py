"""One list for all tokens: by hand, and the kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from support.selections import (
    DTYPES,
    PARTS,
    assert_lists,
    assert_terms,
    bits,
    parts_of,
    permutation,
    random,
)

from nmsparse.ops import gpu
from nmsparse.ops.sparsify import tiles
from nmsparse.ops.sparsify.lists_triton import list_tokens
from nmsparse.ops.sparsify.shared import list_shared_reference, shared_scores


def compare(x, **given):
    """Run both and compare everything that counts."""
    device = x.device
    counters = [torch.tensor([3, 4], device=device) for _ in range(2)]
    expected = list_shared_reference(x, **given, counters=counters[0])
    found = list_tokens(x, **given, counters=counters[1], shared=True)
    count = int(expected.counts)
    assert found.counts.tolist() == [count]
    assert found.indices.shape[0] == 1
    assert found.indices.dtype is expected.indices.dtype
    assert found.indices[0, :count].tolist() == expected.indices[0].tolist()
    assert torch.equal(bits(found.values[:, :count]), bits(expected.values))
    assert_terms(found, expected.scale, expected.token_shift)
    assert (found.sparse is None) == (expected.sparse is None)
    if expected.sparse is not None:
        assert found.sparse.tolist() == expected.sparse.tolist()
    assert counters[1].tolist() == counters[0].tolist()
    assert (found.in_features, found.kept) == (expected.in_features, expected.kept)
    return found


def test_scores_by_hand():
    u = torch.tensor([[1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 30.0, 40.0], [0.0] * 4])
    scores = shared_scores(u)
    third = [1 / 9, 4 / 9, 4 / 9 + 0.36, 0.64]
    torch.testing.assert_close(scores, torch.tensor(third))
    # A louder token has no more say, one without a say has none.
    torch.testing.assert_close(
        shared_scores(u * torch.tensor([[1.0], [9.0], [1]])), scores
    )
    voters = torch.tensor([True, False, True])
    torch.testing.assert_close(shared_scores(u, voters=voters) * 9, u[0].square())
    factor = torch.tensor([3.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(
        shared_scores(u, factor), torch.tensor([1.0, 4 / 9, 4 / 9 + 0.36, 0.0])
    )


def test_lists_by_hand(device):
    x = torch.tensor([[1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 30.0, 40.0]], device=device)
    found = compare(x, kept=2, group=4)
    assert found.indices.tolist() == [[2, 3]]
    assert found.values.tolist() == [[2.0, 0.0], [30.0, 40.0]]
    assert found.is_shared


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("kept", "group"), [(1, 4), (8, 16), (3, 5), (16, 16), (60, 240), (24, 120)]
)
def test_kernels_agree_with_the_reference(kept, group, dtype, device):
    x = random(4, 240, dtype=dtype, coarse=True).to(device)
    compare(x, kept=kept, group=group)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    "names",
    [(name,) for name in PARTS]
    + [("factor", "channel_shift", "statistic", "variance")],
    ids=" ".join,
)
@pytest.mark.parametrize("group", [16, 96])
def test_corrections(names, group, monkeypatch, device):
    monkeypatch.setattr(tiles, "_HELD", 64)
    monkeypatch.setattr(tiles, "_SPAN", 32)
    monkeypatch.setattr(tiles, "_CHANNELS", 32)
    x = random(3, 192, dtype=torch.bfloat16, seed=2).to(device)
    given = parts_of(names, 3, 192, device)
    for order in (None, permutation(192, device)):
        for sparse in (None, [True] * 3, [True, False, True]):
            flags = None if sparse is None else torch.tensor(sparse, device=device)
            compare(
                x,
                kept=group // 2,
                group=group,
                channel_groups=order,
                sparse=flags,
                **given,
            )
    assert not gpu.tickets(x.device, 1).any()


@pytest.mark.parametrize("group", [16, 96])
def test_padding_has_no_say_and_does_not_count(group, device):
    x = random(3, 96, seed=5).to(device)
    x[1] = torch.nan
    found = compare(
        x,
        kept=group // 2,
        group=group,
        sparse=torch.ones(3, dtype=torch.bool, device=device),
        counted=torch.tensor([True, False, True], device=device),
    )
    alone = list_shared_reference(x[::2], kept=group // 2, group=group)
    count = int(found.counts)
    assert found.indices[0, :count].tolist() == alone.indices[0].tolist()


@pytest.mark.parametrize("group", [4, 96])
def test_rows_of_zeros_nan_and_infinity(group, device):
    x = random(4, 96, seed=6).to(device)
    x[0] = 0.0
    compare(x, kept=group // 2, group=group)
    x[1, 7] = torch.inf
    found = compare(x, kept=1, group=group)
    assert 7 in found.indices[0].tolist(), "infinity is kept"
    x[2, 50] = torch.nan
    compare(x, kept=group // 2, group=group)
    compare(torch.zeros_like(x), kept=group // 2, group=group)


@pytest.mark.parametrize("tokens", [1, 2, 17, 70])
def test_any_number_of_tokens(tokens, device):
    x = random(tokens, 32, seed=7).to(device)
    sparse = torch.ones(tokens, dtype=torch.bool, device=device)
    found = compare(x, kept=2, group=4, sparse=sparse, variance=True)
    assert found.scale.shape == (tokens,)
    if tokens > 65:
        # Behind the first block of flags.
        sparse[65] = False
        assert not compare(x, kept=2, group=4, sparse=sparse).sparse.any()


def test_no_tokens(device):
    x = torch.empty(0, 32, device=device)
    sparse = torch.ones(0, dtype=torch.bool, device=device)
    given = {"kept": 2, "group": 4, "variance": True, "sparse": sparse}
    found = list_tokens(x, **given, shared=True)
    assert found.values.shape == (0, 32)
    assert found.scale.shape == found.sparse.shape == (0,)
    assert found.counts.tolist() == [0], "nothing was listed"


def test_one_token_chooses_as_alone(device):
    x = random(1, 96, seed=8).to(device)
    found = list_tokens(x, kept=8, group=16, shared=True)
    assert_lists(found, x, 8, 16)
    assert not found.is_shared
