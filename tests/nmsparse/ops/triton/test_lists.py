"""Lists and masks of small groups: exactly the reference's choice."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selections import (
    DTYPES,
    PARTS,
    assert_lists,
    assert_terms,
    bits,
    parts_of,
    permutation,
    random,
    reference,
)

from nmsparse.ops import gpu
from nmsparse.ops.sparsify import tiles
from nmsparse.ops.sparsify.lists import index_dtype_of
from nmsparse.ops.sparsify.lists_triton import list_tokens, mask_tokens

GROUPS = [
    *((1, 2), (1, 4), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64)),
    *((3, 5), (6, 8), (7, 48), (1, 1), (16, 16), (5, 5)),
]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kept", "group"), GROUPS)
def test_lists_are_the_references(kept, group, dtype, device):
    # Seven groups: no power of two, and a tail in every program. Ties in one half.
    for coarse in (False, True):
        x = random(3, 7 * group, dtype=dtype, coarse=coarse).to(device)
        before = x.clone()
        assert_lists(list_tokens(x, kept=kept, group=group), x, kept, group)
        assert torch.equal(bits(x), bits(before)), "the input was modified"


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "names",
    [(name,) for name in PARTS]
    + [("factor", "token_shift"), ("factor", "channel_shift", "token_shift"),
       ("channel_shift", "statistic", "variance"),
       ("factor", "channel_shift", "statistic", "variance")],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("grouped", [False, True], ids=["plain", "channel groups"])
def test_corrections_and_dense_tokens(names, dtype, grouped, device):
    x = random(3, 80, dtype=dtype, seed=2).to(device)
    given = parts_of(names, 3, 80, device)
    if grouped:
        given["channel_groups"] = permutation(80, device)
    some = torch.tensor([True, False, True], device=device)
    for sparse in (None, some if grouped else some.to(torch.uint8)):
        if sparse is not None:
            given["sparse"] = sparse
        for kept, group in ((8, 16), (3, 5) if grouped else (16, 16)):
            found = list_tokens(x, kept=kept, group=group, **given)
            assert_lists(found, x, kept, group, **given)
            assert found.values.shape[1] == (found.kept if sparse is None else 80)
            _, values, scale, shift = reference(x, kept, group, **given)
            masked = mask_tokens(x, kept=kept, group=group, **given)
            assert torch.equal(bits(masked.values), bits(values))
            assert_terms(masked, scale, shift)
            assert masked.residual is None
    assert found.sparse.dtype is torch.bool
    assert found.sparse.tolist() == some.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_values(dtype, device):
    kinds = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-7, -6e4]
    pick = torch.Generator().manual_seed(1)
    chosen = torch.randint(len(kinds), (8, 96), generator=pick)
    x = torch.tensor(kinds)[chosen].to(dtype).to(device)
    for names in ((), ("factor",), ("channel_shift", "token_shift"), ("variance",)):
        given = parts_of(names, 8, 96, device)
        found = list_tokens(x, kept=8, group=16, **given)
        expected = reference(x, 8, 16, **given)
        listed = expected[0].nonzero()[:, 1].view(8, 48)
        assert found.indices.tolist() == listed.tolist()
        torch.testing.assert_close(
            found.values, expected[1].gather(1, listed), rtol=0, atol=0, equal_nan=True
        )
        assert_terms(found, *expected[2:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_16_bits_orders_as_in_the_reference(dtype, device):
    # All bit patterns, NaNs with payload too: a value is its own key.
    pick = torch.Generator().manual_seed(2)
    shuffled = torch.randperm(1 << 16, generator=pick) - (1 << 15)
    x = shuffled.to(torch.int16).view(dtype).view(4, -1).to(device)
    found = list_tokens(x, kept=8, group=16)
    assert_lists(found, x, 8, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shifted_values_are_rounded_as_torch_rounds(dtype, device):
    # At, beside and halfway between numbers of 16 bits, and any bits there are.
    number = torch.arange(-(1 << 15), 1 << 15, 29, dtype=torch.int16)
    near = torch.cat([bits(number.view(t).float()) for t in DTYPES[:2]])
    halves = [near + step for step in (-1, 0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000)]
    pick = torch.Generator().manual_seed(0)
    anything = torch.randint(-(1 << 31), 1 << 31, (1 << 14,), generator=pick)
    wanted = torch.cat([*halves, anything.int()]).view(torch.float32)
    wanted = wanted[(wanted != 0)]  # 0 - 0 is no -0.0
    wanted = wanted[: len(wanted) // 16 * 16].to(device)
    x = torch.zeros(1, len(wanted), dtype=dtype, device=device)
    values = mask_tokens(x, kept=16, group=16, channel_shift=-wanted).values[0]
    nan = wanted.isnan()
    assert torch.equal(values.isnan(), nan)
    assert torch.equal(bits(values[~nan]), bits(wanted[~nan].to(dtype)))


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 17])
def test_any_number_of_tokens(tokens, device):
    x = random(tokens, 48, seed=5).to(device)
    given = parts_of(("channel_shift", "statistic", "variance"), tokens, 48, device)
    assert_lists(list_tokens(x, kept=2, group=4, **given), x, 2, 4, **given)
    values = mask_tokens(x, kept=2, group=4, **given).values
    assert torch.equal(bits(values), bits(reference(x, 2, 4, **given)[1]))


def test_no_channels(device):
    x = torch.empty(3, 0, device=device)
    found = list_tokens(
        x, kept=2, group=4, variance=True, token_shift=torch.arange(3.0, device=device)
    )
    assert found.values.shape == found.indices.shape == (3, 0)
    assert found.counts.tolist() == [0, 0, 0]
    assert found.scale.tolist() == [1.0, 1.0, 1.0]
    assert found.token_shift.tolist() == [0.0, 1.0, 2.0]
    assert mask_tokens(x, kept=2, group=4, statistic=True).token_shift.isnan().all()


def test_rows_need_not_be_contiguous(device):
    wide = random(6, 200, dtype=torch.bfloat16, seed=6).to(device)
    for x in (wide[::2, 3:99], wide[:, 4:100][1:], wide.view(200, 6).t()[:, :96]):
        assert not x.is_contiguous()
        assert_lists(list_tokens(x, kept=8, group=16), x, 8, 16)
    factor = random(192, seed=7).abs().to(device)[::2].half()
    x = wide[:, :96]
    found = list_tokens(x, kept=8, group=16, factor=factor)
    assert_lists(found, x, 8, 16, factor=factor)


@pytest.mark.parametrize("counted", [None, [True, False, False, True]])
@pytest.mark.parametrize("sparse", [None, [True, True, False, True]])
@pytest.mark.parametrize(("kept", "group"), [(8, 16), (64, 128), (4, 4)])
def test_counters(kept, group, sparse, counted, device):
    x = random(4, 256, dtype=torch.bfloat16, seed=8, coarse=True).to(device)
    x[0, 40:120] = 0.0
    x[3, ::3] = -0.0
    flags = {
        name: torch.tensor(value, device=device)
        for name, value in (("sparse", sparse), ("counted", counted))
        if value is not None
    }
    counters = torch.tensor([5, 7], device=device)
    given = {"kept": kept, "group": group, **flags, "counters": counters}
    list_tokens(x, **given)
    mask_tokens(x, **given)
    values = reference(x, kept, group)[1]
    real = counted or sparse or [True] * 4
    nonzeros = sum(int(values[t].count_nonzero()) for t in range(4) if real[t])
    expected = [5 + 2 * 256 * sum(real), 7 + 2 * nonzeros]
    assert counters.tolist() == expected


@pytest.mark.parametrize("group", [4, 16, 96])
def test_many_tokens_share_programs(group, monkeypatch, device):
    # Several runs of groups for a program, and a last program with fewer.
    monkeypatch.setattr(tiles, "_PROGRAMS", 8)
    monkeypatch.setattr(tiles, "_CHANNELS", 32)
    x = random(4, 672, seed=9).to(device)
    given = parts_of(("factor", "statistic", "variance"), 4, 672, device)
    counters = torch.zeros(2, dtype=torch.int64, device=device)
    found = list_tokens(x, kept=group // 2, group=group, counters=counters, **given)
    if group <= tiles.MAX_GROUP:
        cut = tiles.group_tiles(4, 672, group)
        assert cut.steps > 1
        assert cut.parts * cut.steps * cut.groups > 672 // group
    assert_lists(found, x, group // 2, group, **given)
    assert counters.tolist() == [4 * 672, 4 * 336]


def with_one(u, place, value):
    found = u.clone()
    found[:, place] = value
    return found


HARD = {
    "offset": lambda u: u * 1e-3 + 1e4,
    "first is far away": lambda u: with_one(u, 0, -1e6),
    "last is far away": lambda u: with_one(u, -1, 3e7),
    "two levels": lambda u: torch.where(u > 0, 1.0, 1.0 + 2.0**-20),
    "huge": lambda u: u * 1e30,
    "tiny": lambda u: u * 1e-30,
    "mostly zero": lambda u: torch.where(u > 2, u, 0),
}


@pytest.mark.parametrize("make", HARD.values(), ids=HARD)
@pytest.mark.parametrize(("kept", "group"), [(2, 4), (15, 16), (2048, 4096)])
def test_variance_is_that_of_two_passes(make, kept, group, device):
    x = make(random(2, 4096, seed=10)).to(device)
    for statistic in (False, True):
        asked = {"variance": True, "statistic": statistic}
        found = list_tokens(x, kept=kept, group=group, **asked)
        expected = reference(x, kept, group, **asked)[2]
        torch.testing.assert_close(found.scale, expected, rtol=1.2e-7, atol=0.0)


@pytest.mark.parametrize("shared", [False, True])
def test_a_token_that_keeps_all_is_not_scaled(shared, device):
    # Of the same sums: one pass around zero would be off here.
    x = HARD["offset"](random(2, 4096, seed=10)).to(device)
    found = list_tokens(x, kept=4, group=4, variance=True, shared=shared)
    assert found.scale.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [0.0, 1 / 3, -7.7, 1e30, torch.nan, torch.inf])
@pytest.mark.parametrize("channels", [8, 4100])
def test_a_token_without_variance_is_not_scaled(value, channels, device):
    x = torch.full((2, channels), value, device=device)
    for kept in (2, 4):
        scale = list_tokens(x, kept=kept, group=4, variance=True).scale
        # Two of four zeros are variance of what is kept, but u has none.
        assert scale.tolist() == [1.0, 1.0]


def test_tickets_are_zero_again(device):
    x = random(3, 4096, seed=11).to(device)
    runs = [list_tokens(x, kept=8, group=16, variance=True).scale for _ in range(3)]
    assert tiles.group_tiles(3, 4096, 16).parts > 1
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    assert not gpu.tickets(x.device, 3).any()


def test_tickets_grow_and_old_ones_stay(device):
    place = torch.device(device)
    before = gpu.tickets(place, 1)
    more = gpu.tickets(place, before.numel() + 1)
    assert more.numel() > before.numel()
    assert gpu.tickets(place, 1) is more
    assert any(made is before for made in gpu._TICKETS[place])


def test_indices_are_as_narrow_as_they_can_be(device):
    assert index_dtype_of(32768) is torch.int16
    assert index_dtype_of(32769) is torch.int32
    x = random(1, 64 * 513, dtype=torch.bfloat16, seed=12).to(device)
    for cut, dtype in ((64 * 512, torch.int16), (64 * 513, torch.int32)):
        found = list_tokens(x[:, :cut], kept=8, group=16)
        assert found.indices.dtype is dtype
        assert_lists(found, x[:, :cut], 8, 16)
    found = list_tokens(x[:, :64], kept=8, group=16, index_dtype=torch.int32)
    assert found.indices.dtype is torch.int32


@st.composite
def cases(draw):
    group = draw(st.integers(1, 20))
    kept = draw(st.integers(1, group))
    tokens, groups = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 1000))
    dtype = draw(st.sampled_from(DTYPES))
    coarse = draw(st.booleans())
    names = draw(st.sets(st.sampled_from(PARTS)))
    if "statistic" in names:
        names.discard("token_shift")
    ordered, some = draw(st.booleans()), draw(st.booleans())
    x = random(tokens, groups * group, dtype=dtype, seed=seed, coarse=coarse)
    return x, kept, group, sorted(names), ordered, some, seed


@given(case=cases())
@settings(deadline=None, max_examples=25)
def test_any_case(case, device):
    x, kept, group, names, ordered, some, seed = case
    x = x.to(device)
    parts = parts_of(names, *x.shape, device, seed=seed)
    if ordered:
        parts["channel_groups"] = permutation(x.shape[1], device, seed)
    if some:
        parts["sparse"] = random(x.shape[0], seed=seed).to(device) > 0
    found = list_tokens(x, kept=kept, group=group, **parts)
    assert_lists(found, x, kept, group, **parts)
    masked = mask_tokens(x, kept=kept, group=group, **parts)
    assert torch.equal(bits(masked.values), bits(reference(x, kept, group, **parts)[1]))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, TypeError, "torch.float64"),
        ({"x": torch.zeros(8)}, ValueError, r"shape \(8,\)\. Expected \[T, K\]"),
        ({"group": 3}, ValueError, "2 of 3 of 8 channels"),
        ({"kept": 5}, ValueError, "5 of 4 of 8 channels"),
        ({"kept": 0}, ValueError, "0 of 4"),
        ({"factor": torch.zeros(7)}, ValueError, r"factor has shape \(7,\)"),
        ({"token_shift": torch.zeros(8)}, ValueError, r"token_shift has shape"),
        ({"token_shift": torch.zeros(2), "statistic": True}, ValueError, "both"),
        ({"sparse": torch.zeros(3, dtype=torch.bool)}, ValueError, "sparse has shape"),
        ({"sparse": torch.zeros(2)}, TypeError, r"float32\. Expected torch\.bool"),
        ({"counters": torch.zeros(2)}, TypeError, "counters are torch.float32"),
    ],
)
def test_refusals(change, error, words, device):
    given = {"x": torch.zeros(2, 8), "kept": 2, "group": 4, **change}
    given = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }
    for run in (list_tokens, mask_tokens):
        arguments = dict(given)
        with pytest.raises(error, match=words):
            run(arguments.pop("x"), **arguments)


def test_tickets_are_not_made_during_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(gpu, "_TICKETS", {})
    with pytest.raises(RuntimeError, match="run the same call once outside capture"):
        gpu.tickets(torch.device("cuda", 0), 5)


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("group", [16, 14336])
def test_twenty_runs_are_equal(group, shared, device):
    x = random(16, 14336, dtype=torch.bfloat16, seed=13).to(device)
    given = parts_of(("factor", "statistic", "variance"), 16, 14336, device)
    cut = {"kept": group // 2, "group": group, "shared": shared}
    runs = [list_tokens(x, **cut, **given) for _ in range(20)]
    for run in runs[1:]:
        for name in ("indices", "values", "scale", "token_shift"):
            assert torch.equal(bits(getattr(run, name)), bits(getattr(runs[0], name)))


@pytest.mark.gpu
@pytest.mark.parametrize("group", [16, 4096])
def test_a_graph_captures_it(group, device):
    x = random(4, 4096, dtype=torch.bfloat16, seed=14).to(device)
    given = parts_of(("factor", "statistic", "variance"), 4, 4096, device)
    given["sparse"] = torch.tensor([True, True, False, True], device=device)
    list_tokens(x, kept=group // 2, group=group, **given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = list_tokens(x, kept=group // 2, group=group, **given)
    for seed in (15, 16):
        x.copy_(random(4, 4096, dtype=torch.bfloat16, seed=seed))
        given["sparse"].copy_(torch.arange(4) != seed % 4)
        graph.replay()
        # The flags of the lists are those the call got.
        assert_lists(found, x, group // 2, group, **given)


@pytest.mark.gpu
def test_nothing_is_compiled_for_another_number_of_tokens(device):
    from nmsparse.ops.sparsify.groups_triton import groups_kernel

    def compiled():
        return sum(len(cache[0]) for cache in groups_kernel.device_caches.values())

    x = random(600, 4096, dtype=torch.bfloat16, seed=17).to(device)
    list_tokens(x[:1], kept=8, group=16, variance=True)
    before = compiled()
    for tokens in (2, 3, 16, 17, 256, 600):
        list_tokens(x[:tokens], kept=8, group=16, variance=True)
    assert compiled() == before
