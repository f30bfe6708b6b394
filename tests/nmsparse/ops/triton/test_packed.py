"""``packed_linear`` by Triton: equal to the dense product, within its rounding.

Where there is no GPU, Triton interprets the kernel, on memory that ends where a page
begins that nobody may touch. Its interpreter cuts bfloat16 results instead of rounding
them, so there they may be off by one place.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cpu_kernels import at_the_end, bits, random

from nmsparse.ops.packed.limits import MAX_TOKENS
from nmsparse.ops.packed.packed_triton import packed_linear_triton
from nmsparse.ops.packed.reference import packed_linear_reference
from nmsparse.ops.packed.tiles import (
    PackedTiles,
    default_tiles,
    listed_tiles,
    processors_of,
)
from nmsparse.packed import PADDING, PackedWeight

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def guarded(x, device, row=0):
    """Copy to a GPU, or to the very end of memory."""
    return at_the_end(x, row=row) if device == "cpu" else x.to(device)


def pruned(outputs, channels, dtype, seed=1, *, density=0.5):
    weight = random(outputs, channels, dtype=dtype, seed=seed)
    stays = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(stays < density, weight, 0)


def packed(weight, device):
    """Pack, with NaN where the readable zeros behind the values should be."""
    made = PackedWeight.pack(weight)
    values = guarded(made.values, device)
    values[made.stored :] = torch.nan
    assert len(values) == made.stored + PADDING
    places = guarded(made.bits, device), values, guarded(made.offsets, device)
    return PackedWeight(*places, made.in_features)


def assert_product(found, x, weight, bias=None):
    """Check a product that is accumulated in float32 and rounded once."""
    interpreted = not found.is_cuda
    found, x, weight = found.cpu(), x.cpu(), weight.cpu()
    own = torch.zeros(weight.shape[0]) if bias is None else bias.cpu()
    exact = x.double() @ weight.double().t() + own.double()
    magnitude = x.double().abs() @ weight.double().abs().t() + own.double().abs()
    info = torch.finfo(found.dtype)
    places = 1.0 if interpreted and found.dtype is torch.bfloat16 else 0.5
    bound = magnitude * (weight.shape[1] + 9) * 2.0**-24
    bound += (exact.abs() + bound) * info.eps * places + info.smallest_normal * info.eps
    assert found.dtype is x.dtype
    assert found.shape == exact.shape
    error = ((found.double() - exact).abs() / bound).nan_to_num(torch.inf)
    assert not error.numel() or error.max() <= 1.0, f"{error.max()} of the bound"


def assert_same_kinds(found, expected):
    """Check where two products are NaN and infinite, and that the rest agrees."""
    found, expected = found.cpu().double(), expected.cpu().double()
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(found), kind(expected))
    finite = expected.isfinite()
    torch.testing.assert_close(found[finite], expected[finite], rtol=2e-2, atol=2e-2)


def multiply(x, weight, device, bias=None, tiles=None):
    """Multiply by the packed weight, from and into memory that ends there."""
    own = None if bias is None else guarded(bias, device)
    mine = guarded(x, device, row=x.shape[1] + 5)
    return packed_linear_triton(mine, packed(weight, device), own, tiles=tiles)


def test_by_hand(device):
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, -3.0, 0.0]])
    x = torch.tensor([[1.0, 10.0, 100.0], [0.0, 1.0, 2.0]])
    bias = torch.tensor([0.5, 0.0])
    expected = [[201.5, -30.0], [4.5, -3.0]]
    assert multiply(x, weight, device, bias).tolist() == expected
    assert multiply(x[:1], weight, device, bias).tolist() == expected[:1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [*range(6), 7, 8, 9, 15, 16])
def test_every_number_of_tokens(device, tokens, dtype, poisoned_memory):
    weight, bias = pruned(37, 200, dtype), random(37, dtype=dtype, seed=3)
    x = random(tokens, 200, dtype=dtype)
    assert_product(multiply(x, weight, device, bias), x, weight, bias)
    assert_product(multiply(x, weight, device), x, weight)


def test_more_tokens_are_refused(device):
    weight = PackedWeight.pack(pruned(3, 64, torch.float32))
    assert MAX_TOKENS == 16
    with pytest.raises(ValueError, match=r"17 tokens. Expected at most 16"):
        packed_linear_triton(torch.ones(17, 64), weight, None)


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 63, 64, 65, 127, 129, 500, 1100])
@pytest.mark.parametrize("tokens", [1, 5])
def test_every_tail_of_channels(device, channels, tokens, poisoned_memory):
    weight = pruned(19, channels, torch.float16)
    x = random(tokens, channels, dtype=torch.float16)
    assert_product(multiply(x, weight, device), x, weight)


@pytest.mark.parametrize("outputs", [1, 3, 15, 16, 17, 33, 70])
@pytest.mark.parametrize("tokens", [1, 2])
def test_every_tail_of_outputs(device, outputs, tokens, poisoned_memory):
    weight = pruned(outputs, 90, torch.float32)
    x = random(tokens, 90)
    for rows in (16, 32) if tokens > 1 else (1, 2, 8, 16):
        found = multiply(x, weight, device, tiles=PackedTiles(rows, 64))
        assert_product(found, x, weight)


@pytest.mark.parametrize("block_k", [64, 128, 256, 512])
@pytest.mark.parametrize("tokens", [1, 3])
def test_pieces_do_not_show(device, block_k, tokens):
    # Values before a piece are counted by the pieces before it.
    weight, x = pruned(20, 450, torch.float32), random(tokens, 450)
    tiles = PackedTiles(16, block_k)
    assert_product(multiply(x, weight, device, tiles=tiles), x, weight)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.98, 1.0])
@pytest.mark.parametrize("tokens", [1, 2])
def test_few_and_many_values(device, density, tokens):
    # At 1.0 every byte is full: rank 7, 8 values, and the sign bit of each word is set.
    weight = pruned(18, 330, torch.float32, density=density)
    x = random(tokens, 330)
    assert_product(multiply(x, weight, device), x, weight)


@pytest.mark.parametrize("tokens", [1, 2])
def test_every_byte(device, tokens):
    # Row b holds byte b, in the lowest and in the highest byte of a word.
    byte = torch.arange(256)[:, None] >> torch.arange(8) & 1
    weight = torch.zeros(256, 64)
    weight[:, :8] = weight[:, 56:] = byte * (1 + torch.arange(8))
    x = torch.cat([2.0 ** torch.arange(8), torch.zeros(48), 3.0 ** torch.arange(8)])
    x = x.expand(tokens, -1)
    assert torch.equal(multiply(x, weight, device).cpu(), x @ weight.t())


@pytest.mark.parametrize("tokens", [1, 4])
def test_rows_of_very_different_lengths(device, tokens):
    weight = random(40, 200, seed=1)
    for o in range(40):
        weight[o, o * 5 :] = 0.0
    weight[11, 64:128] = 0.0
    x = random(tokens, 200)
    assert_product(multiply(x, weight, device), x, weight)
    turned = weight.flip(0, 1)
    assert_product(multiply(x, turned, device), x, turned)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_weight_that_is_not_finite_stays_in_its_row(device, dtype, tokens):
    weight, x = pruned(35, 100, dtype), random(tokens, 100, dtype=dtype)
    before = multiply(x, weight, device)
    weight[17, 99], weight[34, 0] = torch.nan, torch.inf
    x[:, 99] = 0.0  # NaN times zero is NaN
    weight[:17, 99], weight[18:, 99] = 0.0, 0.0
    found = multiply(x, weight, device)
    reference = packed_linear_reference(x, PackedWeight.pack(weight), None)
    assert_same_kinds(found, reference)
    assert found[:, 17].isnan().all()
    assert found[:, 34].isinf().all()
    assert before.isfinite().all()


@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_token_that_is_not_finite(device, dtype, tokens, poison):
    # A dropped weight is a zero that meets x: NaN, as in the reference and on a CPU.
    weight, x = pruned(35, 100, dtype), random(tokens, 100, dtype=dtype)
    weight[:, 50] = 0.0
    weight[::2, 50] = 1.0
    weight[3] = 0.0
    x[tokens - 1, 50] = poison
    reference = packed_linear_reference(x, PackedWeight.pack(weight), None)
    assert reference[-1, 1].isnan()
    assert not torch.equal(reference.isnan(), reference.isinf())
    assert_same_kinds(multiply(x, weight, device), reference)


@pytest.mark.parametrize("tokens", [1, 5])
def test_unusual_layouts(device, tokens):
    weight = pruned(40, 70, torch.float32)
    made = packed(weight, device)
    x = random(70, tokens).t().to(device)
    assert tokens == 1 or x.stride(1) != 1
    assert_product(packed_linear_triton(x, made, None), x, weight)
    same = random(1, 70).to(device).expand(tokens, -1)
    assert_product(packed_linear_triton(same, made, None), same, weight)
    apart = random(tokens, 140).to(device)[:, ::2]
    assert_product(packed_linear_triton(apart, made, None), apart, weight)
    part = made.rows(3, 20)
    assert_product(packed_linear_triton(x, part, None), x, weight[3:20])


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_bias_of_another_dtype(device, tokens):
    weight, x = pruned(9, 64, torch.float16), random(tokens, 64, dtype=torch.float16)
    bias = random(9) * 1e-3
    assert_product(multiply(x, weight, device, bias), x, weight, bias)


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_empty(device, tokens, shape, poisoned_memory):
    weight = PackedWeight.pack(torch.zeros(shape, device=device))
    x = torch.zeros(tokens, shape[1], device=device)
    for bias in (None, torch.arange(shape[0], dtype=torch.float32, device=device)):
        expected = torch.zeros(tokens, shape[0]) + (0 if bias is None else bias.cpu())
        assert torch.equal(packed_linear_triton(x, weight, bias).cpu(), expected)


@given(
    st.sampled_from(DTYPES),
    st.tuples(st.integers(0, 16), st.integers(1, 40), st.integers(1, 300)),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.tuples(st.booleans(), st.integers(0, 1 << 16)),
)
@settings(deadline=None, max_examples=25)
def test_any_small_case(device, dtype, sizes, density, options):
    tokens, outputs, channels = sizes
    with_bias, seed = options
    x = random(tokens, channels, dtype=dtype, seed=seed).to(device)
    weight = pruned(outputs, channels, dtype, seed, density=density)
    bias = random(outputs, dtype=dtype, seed=seed).to(device) if with_bias else None
    made = packed(weight, device)
    inputs = [x, made.bits, made.values, *([] if bias is None else [bias])]
    before = [bits(t).clone() for t in inputs]
    assert_product(packed_linear_triton(x, made, bias), x, weight, bias)
    assert all(map(torch.equal, before, map(bits, inputs))), "an input was modified"


@pytest.mark.parametrize("processors", [1, 16, 132])
@pytest.mark.parametrize("tokens", [1, 2, 16])
@pytest.mark.parametrize("outputs", [1, 1024, 4096, 28672])
@pytest.mark.parametrize("channels", [1, 64, 100, 4096])
def test_default_tiles(processors, tokens, outputs, channels):
    tiles = default_tiles(tokens, outputs, channels, processors)
    warps = -(-outputs // tiles.block_o) * tiles.warps
    assert tiles.block_k <= max(64, 2 * channels - 1)
    if tokens == 1:  # as many warps as the device holds, or all that are sensible
        assert warps >= min(32 * processors, 4 * outputs)
        assert tiles.warps == 1 or warps // 2 < 32 * processors
    else:
        assert tiles.block_o >= 16
        assert tiles.block_o == 16 or warps >= 8 * processors
    listed = listed_tiles(channels)
    assert listed.block_k <= max(64, 2 * channels - 1)


def test_tiles_that_do_not_fit(device):
    for wrong in ((3, 64, 4), (0, 64, 4), (4, 32, 4), (4, 96, 4), (4, 64, 3)):
        with pytest.raises(ValueError, match="Expected a power of two, at least"):
            PackedTiles(*wrong)
    weight = PackedWeight.pack(torch.ones(3, 64))
    with pytest.raises(ValueError, match="block_o is 8 for 2 tokens"):
        packed_linear_triton(torch.ones(2, 64), weight, None, tiles=PackedTiles(8, 64))


def test_processors(device):
    found = processors_of(torch.device(device))
    assert found >= 1 if device == "cuda" else found == 1


# Compiling needs no GPU: the interpreter accepts what a compiler refuses.
COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nmsparse.ops.packed.group_packed_triton import _listed_kernel
from nmsparse.ops.packed.packed_triton import _stored_kernel

TYPES = dict(x="*bf16", values="*bf16", bias="*bf16", out="*bf16", bits="*u8",
             offsets="*i64", table="*i32")

def compile(kernel, **constants):
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else TYPES.get(n, "i32")
                 for n in names}
    places = {(names.index(n),): value for n, value in constants.items()}
    made = triton.compile(ASTSource(kernel, signature, places),
                          target=GPUTarget("cuda", 90, 32))
    sys.stdout.write(f"{len(made.asm['ptx']) > 1000}\\n")

stored = dict(HAS_BIAS=True, WIDE=False, TOKENS=16, BYTES=64)
one = dict(stored, ONE_TOKEN=True, BLOCK_O=1)
many = dict(stored, ONE_TOKEN=False, BLOCK_O=16)
compile(_stored_kernel, **one, HAS_OFFSETS=True, KEPT=1, GROUP=1)
compile(_stored_kernel, **many, HAS_OFFSETS=True, KEPT=1, GROUP=1)
compile(_stored_kernel, **one, HAS_OFFSETS=False, KEPT=16, GROUP=32)
compile(_stored_kernel, **one, HAS_OFFSETS=False, KEPT=3, GROUP=192)
compile(_stored_kernel, **many, HAS_OFFSETS=False, KEPT=2, GROUP=4)
for kept, group in ((2, 4), (6, 8), (8, 16)):
    span = max(8, group)
    listed = span // group * kept
    compile(_listed_kernel, HAS_BIAS=True, KEPT=kept, GROUP=group, SPAN=span,
            LISTED=listed, PLACES=triton.next_power_of_2(listed), BLOCK_O=4,
            LISTS=1024 // span)
"""


def test_kernels_compile_for_a_gpu(tmp_path):
    # A cache of its own: what is there already would not be compiled.
    settings = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["True"] * 8


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 8])
def test_runs_are_equal_and_can_be_captured(tokens):
    made = packed(pruned(1000, 4096, torch.bfloat16), "cuda")
    x = random(tokens, 4096, dtype=torch.bfloat16).cuda()
    expected = packed_linear_triton(x, made, None)
    for _ in range(20):
        assert torch.equal(packed_linear_triton(x, made, None), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = packed_linear_triton(x, made, None)
    x.neg_()
    graph.replay()
    assert torch.equal(found, -expected)
