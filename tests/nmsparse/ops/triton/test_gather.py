"""``gather_lists`` and ``linear_triton``: equal to the reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.token_lists import (
    TERMS,
    TOLERANCE,
    assert_product,
    expected_product,
    normal,
    random_lists,
    random_terms,
)

from nmsparse.native.memory import k_major
from nmsparse.ops.linear import gather_triton
from nmsparse.ops.linear.gather_triton import gather_lists, linear_triton
from nmsparse.ops.linear.reference import linear_reference
from nmsparse.ops.linear.tiles import GatherTiles
from nmsparse.ops.linear.workspace import Workspace
from nmsparse.ops.sparsify import CompactActivation
from nmsparse.ops.sparsify.lists_triton import list_tokens

# The interpreter multiplies infinities with NumPy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")

K, OUT, KEPT = 96, 40, 48
SHARED = pytest.mark.parametrize("shared", [False, True], ids=["per token", "shared"])


def cut(splits=3, block_o=16, block_k=16, stages=2):
    return GatherTiles(block_o, block_k, splits, warps=4, stages=stages)


def padded(weight, padding):
    """Return the weight with rows that lie further apart, NaN between them."""
    memory = weight.new_full((weight.shape[0], weight.shape[1] + padding), torch.nan)
    memory[:, : weight.shape[1]] = weight
    return memory[:, : weight.shape[1]]


def check(lists, weight, tiles, **terms):
    space = Workspace(weight.device, floats=1 << 16, tickets=64)
    space.partials.fill_(torch.nan)
    found = gather_lists(lists, weight, tiles=tiles, workspace=space, **terms)
    assert_product(found, expected_product(lists, weight, **terms))
    assert found.dtype is lists.values.dtype
    assert not space.tickets.any()
    again = gather_lists(lists, weight, tiles=tiles, workspace=space, **terms)
    torch.testing.assert_close(again, found, rtol=0, atol=0, equal_nan=True)
    return found


def test_by_hand(device):
    x = CompactActivation(
        torch.tensor([[4.0, -3.0], [3.0, 2.0]], device=device),
        torch.tensor([[0, 1], [1, 3]], dtype=torch.int32, device=device),
        in_features=4,
    )
    rows = [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]
    bias = torch.tensor([0.5, 0.0], device=device)
    y = linear_triton(x, torch.tensor(rows, device=device), bias)
    assert y.tolist() == [[-1.5, -20.0], [14.5, 140.0]]


@pytest.mark.usefixtures("poisoned_memory")
@SHARED
@pytest.mark.parametrize(
    ("dtype", "splits"),
    [
        *((torch.float32, splits) for splits in range(1, 8)),
        *product((torch.float16, torch.bfloat16), (1, 3)),
    ],
    ids=str,
)
def test_every_split(device, shared, dtype, splits):
    lists = random_lists(3, K, KEPT, dtype=dtype, device=device, shared=shared)
    weight = normal(K, OUT, dtype=dtype, seed=1, device=device)
    check(lists, weight, cut(splits))


@pytest.mark.usefixtures("poisoned_memory")
@SHARED
@pytest.mark.parametrize("names", [*((name,) for name in TERMS), TERMS], ids=str)
@pytest.mark.parametrize("dense", [(), (0,)], ids=["sparse", "mixed"])
@pytest.mark.parametrize("splits", [1, 2])
def test_terms(device, shared, names, dense, splits):
    options = {"dense": dense, "shared": shared, "device": device}
    lists = random_lists(2, K, KEPT, scale=True, shift="row_sum" in names, **options)
    terms = random_terms(names, 2, OUT, device=device)
    weight = normal(K, OUT, seed=1, device=device)
    found = check(lists, weight, cut(splits), **terms)
    if dense:
        # An infinite term of sparse tokens leaves dense tokens alone.
        for name in set(names) - {"bias", "addend"}:
            terms[name] = torch.full_like(terms[name], torch.inf)
        again = gather_lists(lists, weight, tiles=cut(splits), **terms)
        assert torch.equal(again[0], found[0])


@SHARED
def test_scale_alone_and_shift_alone(device, shared):
    weight = normal(K, OUT, seed=1, device=device)
    row_sum = weight.sum(0)
    for scale, shift in ((True, False), (False, True)):
        options = {"shared": shared, "device": device, "scale": scale, "shift": shift}
        lists = random_lists(3, K, KEPT, **options)
        check(lists, weight, cut(), row_sum=row_sum)


@SHARED
def test_terms_in_other_dtypes_and_strides(device, shared):
    """Whatever a caller holds: 16-bit vectors, views, a wider bias."""
    dtype = torch.bfloat16
    lists = random_lists(
        3, K, KEPT, dtype=dtype, device=device, shared=shared, scale=True
    )
    lists = replace(lists, scale=lists.scale.repeat_interleave(2)[::2])
    weight = normal(K, OUT, dtype=dtype, seed=1, device=device)
    terms = {
        "bias": normal(OUT, seed=2, device=device),
        "constant": normal(OUT, dtype=dtype, seed=3, device=device),
        "output_scale": normal(OUT, 2, seed=4, device=device)[:, 1],
        "addend": normal(OUT, 3, dtype=dtype, seed=5, device=device).t(),
    }
    check(lists, weight, cut(), **terms)
    terms["addend"] = padded(normal(3, OUT, dtype=dtype, seed=6, device=device), 5)
    check(lists, weight, cut(), **terms)


@SHARED
@pytest.mark.parametrize("outputs", [1, 7, 16, 24, 33, 100])
@pytest.mark.parametrize("padding", [0, 1, 8])
def test_outputs_and_strides(device, shared, outputs, padding):
    weight = padded(normal(K, outputs, seed=1, device=device), padding)
    lists = random_lists(2, K, KEPT, device=device, shared=shared)
    check(lists, weight, cut())


@SHARED
@pytest.mark.parametrize("kept", [1, 5, 16, 17, 95, 96])
@pytest.mark.parametrize("splits", [1, 4])
def test_lists_of_any_length(device, shared, kept, splits):
    """Shorter than a block, not a multiple of one, fewer blocks than splits."""
    lists = random_lists(2, K, kept, device=device, shared=shared)
    check(lists, normal(K, OUT, seed=1, device=device), cut(splits))


@SHARED
@pytest.mark.parametrize("tokens", [0, 1, 2, 15, 16, 17, 33])
def test_any_number_of_tokens(device, shared, tokens):
    lists = random_lists(tokens, K, KEPT, device=device, shared=shared and tokens > 0)
    check(lists, normal(K, 8, seed=1, device=device), cut(2))


@SHARED
@pytest.mark.parametrize("wide", [False, True], ids=["int16", "int32"])
@pytest.mark.parametrize("stages", [1, 3])
def test_channel_numbers(device, shared, wide, stages):
    lists = random_lists(2, K, KEPT, device=device, shared=shared, wide=wide)
    check(lists, normal(K, OUT, seed=1, device=device), cut(2, stages=stages))


@SHARED
def test_lists_with_strides(device, shared):
    """A step's lists are rows of larger buffers."""
    lists = random_lists(3, K, KEPT, device=device, shared=shared)
    values = padded(lists.values, 5)
    indices = torch.full((lists.indices.shape[0], 99), 99, dtype=torch.int16)
    indices = indices.to(device)[:, : lists.indices.shape[1]]
    indices.copy_(lists.indices)
    lists = replace(lists, values=values, indices=indices)
    check(lists, normal(K, OUT, seed=1, device=device), cut())


@SHARED
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(device, shared, bad):
    """A bad value or weight reaches the outputs that read it and no others."""
    kept = 37
    lists = random_lists(3, K - 1, kept, device=device, shared=shared)
    # No list has channel 0, which masked entries stand for.
    lists = replace(lists, in_features=K)
    lists.indices[:, :kept] += 1
    weight = normal(K, OUT, seed=1, device=device)
    read = set(lists.indices[:, :kept].flatten().tolist())
    weight[sorted(set(range(K)) - read)] = bad
    lists.values[1, 7] = bad
    weight[int(lists.indices[0, 3]), 5] = bad
    found = check(lists, weight, cut(2))
    assert found[0].isfinite().sum() == OUT - 1
    assert not found[1].isfinite().any()


def test_default_tiles_and_workspace(device):
    lists = random_lists(2, K, KEPT, device=device)
    weight = k_major(normal(OUT, K, seed=1)).to(device)
    found = gather_lists(lists, weight)
    assert_product(found, expected_product(lists, weight))
    assert not Workspace.for_(weight.device).tickets.any()


def test_one_split_needs_no_workspace(device, monkeypatch):
    monkeypatch.setattr(Workspace, "for_", None)
    lists = random_lists(2, K, KEPT, device=device)
    weight = normal(K, OUT, seed=1, device=device)
    found = gather_lists(lists, weight, tiles=cut(1))
    assert_product(found, expected_product(lists, weight))


@SHARED
def test_any_program_may_arrive_last(device, shared, monkeypatch):
    """The sum is that of the order of splits, whoever adds it up."""
    if device != "cpu":
        pytest.skip("the interpreter's order is known and can be turned around")
    from triton.runtime.interpreter import interpreter_builder

    lists = random_lists(2, K, KEPT, device=device, shared=shared, scale=True)
    weight = normal(K, OUT, seed=1, device=device)
    space = Workspace(weight.device, floats=1 << 14, tickets=64)
    forwards = gather_lists(lists, weight, tiles=cut(3), workspace=space)
    place = interpreter_builder.set_grid_idx
    for order in ((2, 1, 0), (1, 2, 0), (2, 0, 1)):
        monkeypatch.setattr(
            interpreter_builder,
            "set_grid_idx",
            lambda x, y, z, order=order: place(x, order[y], z),
        )
        space.partials.fill_(torch.nan)
        found = gather_lists(lists, weight, tiles=cut(3), workspace=space)
        assert torch.equal(found, forwards)
        assert not space.tickets.any()


def test_rows_beyond_two_gigabytes(device):
    """Offsets into the weight are 64 bit: here the last row starts at 3 * 2^30."""
    stride = 1 << 30
    try:
        memory = torch.empty(3 * stride + 64, dtype=torch.float8_e4m3fn, device=device)
    except RuntimeError:
        pytest.skip("no room for 3 GiB of addresses")
    weight = memory.as_strided((4, 32), (stride, 1))
    weight.copy_(normal(4, 32, seed=1))
    lists = random_lists(2, 4, 3, device=device, wide=True)
    scale = torch.ones((), device=device)
    for each in (
        lists,
        replace(lists, indices=lists.indices[:1], counts=lists.counts[:1]),
    ):
        found = gather_lists(each, weight, weight_scale=scale, tiles=cut(1))
        assert_product(found, expected_product(each, weight.float()))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_random_cases(data, device):
    pick = data.draw
    tokens, channels = pick(st.integers(1, 5)), pick(st.integers(1, 70))
    kept, outputs = pick(st.integers(1, channels)), pick(st.integers(1, 50))
    dense = pick(st.sets(st.integers(0, tokens - 1), max_size=2))
    names = pick(st.sets(st.sampled_from(TERMS)))
    dtype = pick(st.sampled_from(list(TOLERANCE)))
    lists = random_lists(
        tokens,
        channels,
        kept,
        dtype=dtype,
        device=device,
        dense=dense,
        shared=pick(st.booleans()),
        scale=pick(st.booleans()),
        shift="row_sum" in names,
        seed=pick(st.integers(0, 9)),
    )
    weight = padded(
        normal(channels, outputs, dtype=dtype, seed=1, device=device),
        pick(st.integers(0, 9)),
    )
    tiles = cut(pick(st.integers(1, 5)), pick(st.sampled_from([16, 64])))
    terms = random_terms(names, tokens, outputs, dtype=dtype, device=device)
    check(lists, weight, tiles, **terms)


@pytest.mark.parametrize("tokens", [1, 3, 16, 17])
@pytest.mark.parametrize("index_dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("expanded", [False, True])
def test_backend_of_linear(device, tokens, index_dtype, expanded):
    lists = random_lists(tokens, K, KEPT, device=device, wide=True, scale=True)
    indices = lists.indices[:, :KEPT].to(index_dtype)
    if expanded:
        indices = indices[:1].expand(tokens, -1)
    x = CompactActivation(lists.values[:, :KEPT], indices, K, lists.scale)
    weight = normal(OUT, K, seed=1, device=device).t()
    terms = random_terms(TERMS, tokens, OUT, device=device)
    terms["token_shift"] = normal(tokens, seed=9, device=device)
    bias = terms.pop("bias")
    expected = linear_reference(x, weight, bias, **terms)
    assert_product(linear_triton(x, weight, bias, **terms), expected)


def test_one_list_is_read_once(device, monkeypatch):
    """An expanded list is a shared one, and lists of their own are not."""
    lists = random_lists(3, K, KEPT, device=device, wide=True)
    values, indices = lists.values[:, :KEPT], lists.indices[:, :KEPT]
    weight = normal(K, OUT, seed=1, device=device)
    monkeypatch.setattr(gather_triton, "token_kernel", None)
    one = CompactActivation(values, indices[:1].expand(3, -1), K)
    assert_product(
        linear_triton(one, weight, None), linear_reference(one, weight, None)
    )
    with pytest.raises(TypeError, match="NoneType"):
        linear_triton(CompactActivation(values, indices, K), weight, None)


def wrong_cases():
    lists = random_lists(2, K, KEPT, shift=True)
    weight = normal(K, OUT, seed=1)
    good = {"weight": weight, "row_sum": weight.sum(0)}
    return {
        "K-major": (lists, {**good, "weight": weight[:-1]}),
        "contiguous": (lists, {**good, "weight": normal(OUT, K).t()}),
        "one dtype": (lists, {**good, "weight": weight.half()}),
        "row_sum is missing": (lists, {"weight": weight}),
        "bias has shape": (lists, {**good, "bias": normal(OUT + 1)}),
        "addend has shape": (lists, {**good, "addend": normal(1, OUT)}),
        "constant has shape": (lists, {**good, "constant": normal(1)}),
        "scale has shape": (replace(lists, scale=normal(3)), good),
        "2 lists and 1 counts": (replace(lists, counts=lists.counts[:1]), good),
        "float8_e4m3fn alone": (lists, {**good, "weight_scale": torch.ones(())}),
    }


@pytest.mark.parametrize("message", wrong_cases())
def test_refuses(message):
    lists, options = wrong_cases()[message]
    weight = options.pop("weight")
    with pytest.raises((ValueError, TypeError), match=message):
        gather_lists(lists, weight, tiles=cut(), **options)


@SHARED
@pytest.mark.parametrize("mixed", [False, True], ids=["sparse", "mixed"])
def test_lists_of_a_step(device, shared, mixed):
    """From activations to outputs, as a layer runs it."""
    x = normal(3, 64, dtype=torch.float16, seed=3, device=device)
    weight = normal(64, OUT, dtype=torch.float16, seed=1, device=device)
    row_sum, constant = weight.float().sum(0), normal(OUT, seed=4, device=device)
    sparse = torch.tensor([True, False, True], device=device) if mixed else None
    lists = list_tokens(
        x,
        kept=8,
        group=16,
        sparse=sparse,
        statistic=not shared,
        variance=not shared,
        shared=shared,
    )
    terms = {"row_sum": row_sum, "constant": constant}
    found = check(lists, weight, cut(2), **terms)
    if mixed:
        dense = x[1].double() @ weight.double()
        torch.testing.assert_close(found[1].double(), dense, rtol=2e-3, atol=1e-2)
