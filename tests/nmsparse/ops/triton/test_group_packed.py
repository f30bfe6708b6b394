"""``GroupPacked``: N values a group, exact round trips, and its two products."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cpu_kernels import at_the_end, bits, random

from nmsparse import packed_tensors
from nmsparse.keep import select_keep
from nmsparse.ops.packed import group_packed, group_packed_triton
from nmsparse.ops.packed.group_packed import (
    GroupPacked,
    group_packed_linear,
    group_packed_linear_reference,
)
from nmsparse.ops.packed.group_packed_triton import (
    group_packed_linear_triton,
    has_lists,
    position_table,
)
from nmsparse.ops.packed.tiles import PackedTiles
from nmsparse.pattern import NMPattern, parse_pattern

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LISTED = ["1:1", "1:2", "1:4", "2:4", "3:4", "1:8", "4:8", "6:8", "8:8"]
PAIRED = ["1:16", "5:16", "8:16"]
EXPANDED = ["9:16", "16:32", "32:64", "64:128", "100:192"]
PATTERNS = [*LISTED, *PAIRED, *EXPANDED]
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def sparse(outputs, groups, text, dtype=torch.float32, seed=1, *, fewer=0.1):
    """Return a weight of a pattern; a share of what could be stored is zero."""
    pattern = parse_pattern(text)
    weight = random(outputs, groups * pattern.m, dtype=dtype, seed=seed)
    drop = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
    weight = torch.where(select_keep(weight.abs(), pattern), weight, 0)
    return torch.where(drop < fewer, 0, weight)


def guarded(made, device):
    """Put a weight on a GPU, or where memory ends."""
    if device != "cpu":
        return GroupPacked(
            made.bits.to(device),
            made.values.to(device),
            made.pattern,
            made.in_features,
        )
    values = at_the_end(made.values.flatten()).view(made.values.shape)
    words = at_the_end(made.bits.flatten()).view(made.bits.shape)
    return GroupPacked(words, values, made.pattern, made.in_features)


def assert_product(found, x, weight, bias=None):
    """Check a product that is accumulated in float32 and rounded once."""
    # Triton's interpreter cuts bfloat16 results instead of rounding them.
    places = 1.0 if not found.is_cuda and found.dtype is torch.bfloat16 else 0.5
    found, x, weight = found.cpu(), x.cpu(), weight.cpu()
    own = torch.zeros(weight.shape[0]) if bias is None else bias.cpu()
    exact = x.double() @ weight.double().t() + own.double()
    magnitude = x.double().abs() @ weight.double().abs().t() + own.double().abs()
    info = torch.finfo(found.dtype)
    bound = magnitude * (weight.shape[1] + 9) * 2.0**-24
    bound += (exact.abs() + bound) * info.eps * places + info.smallest_normal * info.eps
    assert found.dtype is x.dtype
    assert found.shape == exact.shape
    error = ((found.double() - exact).abs() / bound).nan_to_num(torch.inf)
    assert not error.numel() or error.max() <= 1.0, f"{error.max()} of the bound"


def multiply(x, made, device, bias=None, **options):
    own = None if bias is None else bias.to(device)
    mine = at_the_end(x, row=x.shape[1] + 5) if device == "cpu" else x.to(device)
    return group_packed_linear_triton(mine, guarded(made, device), own, **options)


def test_packed_by_hand():
    weight = torch.tensor([[0.0, 5.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0], [0.0] * 8])
    found = GroupPacked.pack(weight, "2:4")
    # Groups are filled up with their first zeros.
    assert found.bits.tolist() == [[0b10010011], [0b00110011]]
    assert found.values.tolist() == [[0.0, 5.0, 1.0, 2.0], [0.0] * 4]
    assert (found.shape, found.dtype) == ((2, 8), torch.float32)
    assert (found.pattern, found.density) == (NMPattern(2, 4), 0.5)
    assert found.nbytes == 2 * 8 + 8 * 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", PATTERNS)
def test_round_trip(text, dtype):
    weight = sparse(7, 5, text, dtype)
    before = bits(weight).clone()
    found = GroupPacked.pack(weight, text)
    found.check()
    pattern = parse_pattern(text)
    assert found.values.shape == (7, 5 * pattern.n)
    assert torch.equal(bits(found.unpack()), bits(weight))
    assert torch.equal(bits(weight), before)


def test_what_is_not_an_ordinary_number():
    tiny = torch.finfo(torch.bfloat16).smallest_normal / 4
    row = [math.nan, -0.0, tiny, -0.0, -0.0, -math.inf, 0.0, 0.0]
    found = GroupPacked.pack(torch.tensor([row], dtype=torch.bfloat16), "2:4")
    expected = torch.tensor([[x if x != 0 else 0.0 for x in row]], dtype=torch.bfloat16)
    assert torch.equal(bits(found.unpack()), bits(expected))
    assert not found.values.signbit()[0, 2]  # a -0.0 that fills up is stored as +0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_size_of_2_of_4(dtype):
    weight = sparse(64, 1024, "2:4", dtype)
    assert GroupPacked.pack(weight, "2:4").nbytes * 16 == weight.nbytes * 9


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_blocks_do_not_show(monkeypatch, block):
    weight, x = sparse(9, 20, "2:4"), random(2, 80)
    expected = GroupPacked.pack(weight, "2:4")
    product = group_packed_linear_reference(x, expected, None)
    monkeypatch.setattr(packed_tensors, "_BLOCK", block)
    found = GroupPacked.pack(weight, "2:4")
    found.check()
    assert torch.equal(found.bits, expected.bits)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.unpack(), weight)
    again = group_packed_linear_reference(x, found, None)
    torch.testing.assert_close(again, product)
    weight[8, 40:43] = 1.0
    with pytest.raises(ValueError, match=r"row 8, group 10 "):
        GroupPacked.pack(weight, "2:4")


def test_a_weight_that_violates_the_pattern():
    weight = sparse(9, 20, "2:4", fewer=1.0)
    weight[3, 68:71] = 1.0
    weight[3, 72:76] = 1.0
    weight[5, 0:4] = 1.0
    message = r"row 3, group 17 \(channels 68 to 71\) .* holds 3 non-zeros. Expected"
    with pytest.raises(ValueError, match=message):
        GroupPacked.pack(weight, "2:4")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("3:5", "Expected an M that divides 64 or is a multiple"),
        ("48:96", "Expected an M that divides 64 or is a multiple"),
        ("50%", "has no groups"),
        ("8:16", "in_features 72 is not a multiple of m=16"),
    ],
)
def test_patterns_that_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        GroupPacked.pack(torch.zeros(2, 72), pattern)


def test_weights_that_are_refused():
    with pytest.raises(ValueError, match=r"shape \(8,\). Expected \[O, K\]"):
        GroupPacked.pack(torch.zeros(8), "2:4")
    with pytest.raises(TypeError, match=r"torch.int8. Expected float16, bfloat16 or"):
        GroupPacked.pack(torch.zeros(2, 8, dtype=torch.int8), "2:4")


def test_views_are_packed_as_they_look():
    weight = sparse(8, 6, "2:4")
    turned = weight.t().contiguous().t()
    assert torch.equal(GroupPacked.pack(turned, "2:4").unpack(), weight)
    assert torch.equal(GroupPacked.pack(weight[::2], "2:4").unpack(), weight[::2])
    part = GroupPacked.pack(weight, "2:4").rows(3, 5)
    part.check()
    assert torch.equal(part.unpack(), weight[3:5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": torch.zeros(3, 2, dtype=torch.int64)}, "bits is .*Expected"),
        ({"bits": torch.zeros(3, 1, dtype=torch.int32)}, "bits is torch.int32"),
        ({"values": torch.zeros(3, 11)}, r"values is torch.float32 \(3, 11\)"),
        ({"values": torch.zeros(3, 12, dtype=torch.int16)}, "values is torch.int16"),
        ({"values": torch.zeros(12, 3).t()}, "not contiguous"),
        ({"in_features": 25}, "in_features 25 is not a multiple"),
        ({"in_features": 20}, "values is"),
        ({"pattern": NMPattern(3, 5)}, "Expected an M that divides"),
    ],
)
def test_check_refuses_parts(changes, message):
    made = GroupPacked.pack(sparse(3, 6, "2:4"), "2:4")
    made.check()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(made, **changes).check()


def test_check_refuses_bits():
    made = GroupPacked.pack(sparse(3, 6, "2:4"), "2:4")
    words = made.bits.clone()
    words[2] |= 1 << 24
    with pytest.raises(ValueError, match="bits at or beyond in_features are set"):
        dataclasses.replace(made, bits=words).check()
    words = made.bits.clone()
    words[1] |= 0b1111 << 12
    with pytest.raises(
        ValueError, match=r"row 1, group 3 has 4 bits set. Expected exa"
    ):
        dataclasses.replace(made, bits=words).check()
    words[1] = made.bits[1] & ~(0b1111 << 16)
    with pytest.raises(ValueError, match="row 1, group 4 has 0 bits set"):
        dataclasses.replace(made, bits=words).check()


def test_product_by_hand(device):
    weight = torch.tensor([[0.0, 5.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0], [0.0] * 8])
    made, bias = GroupPacked.pack(weight, "2:4"), torch.tensor([0.5, 7.0])
    x = torch.arange(1.0, 9.0).view(1, 8)
    for product in (
        group_packed_linear_reference(x, made, bias),
        multiply(x, made, device, bias),
        multiply(x, made, device, bias, listed=False),
    ):
        assert product.tolist() == [[31.5, 7.0]]


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("tokens", [0, 1, 2, 16])
def test_every_pattern(device, text, tokens, poisoned_memory):
    # Groups that end within a byte and within a word.
    groups = 1 + 170 // parse_pattern(text).m
    weight, bias = sparse(13, groups, text), random(13, seed=3)
    made, x = GroupPacked.pack(weight, text), random(tokens, weight.shape[1])
    assert_product(group_packed_linear_reference(x, made, bias), x, weight, bias)
    assert_product(multiply(x, made, device, bias), x, weight, bias)
    assert_product(multiply(x, made, device, listed=False), x, weight)


@pytest.mark.parametrize("text", ["2:4", "6:8", "8:16", "16:32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(device, text, dtype):
    weight = sparse(10, 12, text, dtype)
    made, bias = GroupPacked.pack(weight, text), random(10, dtype=dtype, seed=3)
    for tokens in (1, 3):
        x = random(tokens, weight.shape[1], dtype=dtype)
        assert_product(multiply(x, made, device, bias), x, weight, bias)


@pytest.mark.parametrize("block_k", [64, 128, 512])
@pytest.mark.parametrize("text", ["2:4", "8:16", "16:32", "64:128", "100:192"])
def test_pieces_do_not_show(device, text, block_k):
    # A piece may hold many groups, one, or a part of one.
    weight = sparse(9, 1 + 400 // parse_pattern(text).m, text)
    made, tiles = GroupPacked.pack(weight, text), PackedTiles(16, block_k)
    for tokens in (1, 2):
        x = random(tokens, weight.shape[1])
        assert_product(multiply(x, made, device, tiles=tiles), x, weight)
        found = multiply(x, made, device, tiles=tiles, listed=False)
        assert_product(found, x, weight)


@pytest.mark.parametrize("outputs", [1, 3, 4, 5, 33])
@pytest.mark.parametrize("text", ["2:4", "8:16"])
def test_every_tail_of_outputs(device, outputs, text, poisoned_memory):
    weight, x = sparse(outputs, 9, text), random(1, 9 * parse_pattern(text).m)
    made = GroupPacked.pack(weight, text)
    for rows in (1, 4, 8):
        found = multiply(x, made, device, tiles=PackedTiles(rows, 64))
        assert_product(found, x, weight)


@pytest.mark.parametrize("low", range(256))
def test_two_bytes_of_a_group(device, low):
    # Every low byte; the high byte holds the other values, from its ends.
    rest = 8 - low.bit_count()
    row = [low >> j & 1 for j in range(8)]
    high = [1] * rest + [0] * (8 - rest)
    weight = torch.tensor([row + high, row + high[::-1]], dtype=torch.float32)
    weight *= 1 + torch.arange(16)
    x = 2.0 ** torch.arange(16).view(1, 16)
    made = GroupPacked.pack(weight, "8:16")
    assert torch.equal(multiply(x, made, device).cpu(), x @ weight.t())


@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("text", ["2:4", "8:16", "16:32"])
@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_token_that_is_not_finite(device, text, place, poison):
    # A dropped weight is a zero that meets x: NaN, though nothing reads it.
    weight = sparse(21, 10, text)
    made, x = GroupPacked.pack(weight, text), random(1, weight.shape[1])
    x[0, place] = poison
    reference = group_packed_linear_reference(x, made, None)
    found = multiply(x, made, device).cpu()
    assert reference.isnan().any()
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(found), kind(reference))


def test_a_weight_that_is_not_finite_stays_in_its_row(device):
    weight = sparse(6, 20, "2:4")
    weight[2, :4] = torch.tensor([torch.nan, 0.0, 0.0, 0.0])
    weight[4, -4:] = torch.tensor([0.0, 0.0, 0.0, torch.inf])
    x = random(1, 80)
    x[0, 0] = 0.0
    found = multiply(x, GroupPacked.pack(weight, "2:4"), device)[0]
    assert found.isnan().tolist() == [False, False, True, False, False, False]
    assert found.isinf().tolist() == [False, False, False, False, True, False]


def test_which_patterns_have_lists():
    assert {text for text in PATTERNS if has_lists(parse_pattern(text))} == {
        *LISTED,
        *PAIRED,
    }


def test_position_table(monkeypatch):
    table = position_table(torch.device("cpu"))
    assert table is position_table(torch.device("cpu"))
    assert [hex(int(table[b])) for b in (0, 0b101, 0b11111111)] == [
        "0x0",
        "0x20",
        "0x76543210",
    ]
    # Not made while a graph is captured, which would own its memory.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(group_packed_triton, "_TABLES", {})
    assert position_table(torch.device("cuda")) is None
    assert group_packed_triton._TABLES == {}


def test_lists_are_used_where_they_can_be(device, monkeypatch):
    # Both ways give the same numbers: this looks at which one ran.
    calls = []
    monkeypatch.setattr(
        group_packed_triton,
        "multiply_stored",
        lambda x, *rest, **options: calls.append(x.shape[0]) or x,
    )
    made = GroupPacked.pack(sparse(3, 8, "2:4"), "2:4")
    multiply(random(1, 32), made, device)
    assert calls == []
    multiply(random(2, 32), made, device)
    multiply(random(1, 32), made, device, listed=False)
    monkeypatch.setattr(group_packed_triton, "position_table", lambda device: None)
    multiply(random(1, 32), made, device)
    large = GroupPacked.pack(sparse(3, 2, "16:32"), "16:32")
    multiply(random(1, 64), large, device)
    assert calls == [2, 1, 1, 1]


@pytest.mark.parametrize("backend", ["triton", "reference", "cpu"])
def test_the_backend_follows_packed(monkeypatch, backend):
    asked = []

    def explain(op, **call):
        asked.append((op, call))
        return type("Decision", (), {"backend": backend})

    monkeypatch.setattr(group_packed, "explain", explain)
    monkeypatch.setattr(
        group_packed_triton, "group_packed_linear_triton", lambda *call: "triton"
    )
    monkeypatch.setattr(
        group_packed, "group_packed_linear_reference", lambda *call: "reference"
    )
    made = GroupPacked.pack(sparse(3, 8, "2:4", torch.bfloat16), "2:4")
    found = group_packed_linear(random(5, 32, dtype=torch.bfloat16), made)
    assert found == ("triton" if backend == "triton" else "reference")
    assert asked == [("packed", {"device": "cpu", "dtype": "bfloat16", "tokens": 5})]


def test_public_product_and_what_it_refuses(device):
    weight = sparse(5, 8, "2:4").to(device)
    made, x = GroupPacked.pack(weight, "2:4"), random(3, 32).to(device)
    assert_product(group_packed_linear(x, made), x, weight)
    with pytest.raises(ValueError, match=r"Expected \[T, K\] = \[T, 32\]"):
        group_packed_linear(x[0], made)
    with pytest.raises(ValueError, match=r"Expected \[T, K\] = \[T, 32\]"):
        group_packed_linear(x[:, :28], made)
    with pytest.raises(
        TypeError, match=r"x is torch.float16, the weight torch.float32"
    ):
        group_packed_linear(x.half(), made)
    with pytest.raises(ValueError, match=r"bias has shape \(4,\). Expected \[5\]"):
        group_packed_linear(x, made, torch.zeros(4))


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (0, 0)], ids=str)
def test_empty(device, tokens, shape, poisoned_memory):
    made = GroupPacked.pack(torch.zeros(shape, device=device), "2:4")
    made.check()
    assert made.unpack().shape == shape
    x = torch.zeros(tokens, shape[1], device=device)
    bias = torch.arange(shape[0], dtype=torch.float32, device=device)
    for product in (group_packed_linear_reference, group_packed_linear_triton):
        found = product(x, made, bias)
        assert torch.equal(found, bias.expand(tokens, -1))


@given(
    st.sampled_from(PATTERNS),
    st.tuples(st.integers(1, 16), st.integers(1, 12), st.integers(1, 4)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 1 << 16),
)
@settings(deadline=None, max_examples=25)
def test_any_small_case(device, text, sizes, fewer, seed):
    tokens, outputs, groups = sizes
    weight = sparse(outputs, groups, text, seed=seed, fewer=fewer)
    made, x = GroupPacked.pack(weight, text), random(tokens, weight.shape[1], seed=seed)
    made.check()
    assert_product(multiply(x, made, device), x, weight)


@pytest.mark.gpu
@pytest.mark.parametrize("text", ["2:4", "8:16", "16:32"])
def test_runs_are_equal_and_can_be_captured(text):
    weight = sparse(1000, 128, text, torch.bfloat16)
    made = guarded(GroupPacked.pack(weight, text), "cuda")
    x = random(1, weight.shape[1], dtype=torch.bfloat16).cuda()
    expected = group_packed_linear_triton(x, made, None)
    for _ in range(20):
        assert torch.equal(group_packed_linear_triton(x, made, None), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = group_packed_linear_triton(x, made, None)
    x.neg_()
    graph.replay()
    assert torch.equal(found, -expected)
