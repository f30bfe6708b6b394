"""What the tests of the CPU kernels share: hostile memory, bit patterns, error bounds.

Memory here ends where a page begins that nobody may touch: a kernel that reads or
writes one element too far ends the process. Everything before it starts as NaN.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator, Sequence
from unittest import mock

import pytest
import torch

from nmsparse.native import library
from nmsparse.ops.sparsify import CompactActivation
from nmsparse.ops.sparsify.cpu import compact_cpu
from nmsparse.pattern import Pattern, parse_pattern

PATTERNS = (
    *("1:4", "2:4", "4:8", "3:8", "8:16", "16:32", "31:32"),  # vectors of groups
    *("7:7", "16:16"),  # nothing to select
    *("3:5", "50%"),  # any M, and one group a row
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def kernels() -> Iterator[None]:
    """Skip where there are no kernels; run with one thread otherwise.

    On a new machine this compiles them, about 20 s for an ISA level; afterwards they
    come from the user's cache. One thread, because threads that wait for each other are
    slow on a busy machine: tests of several ask for them.
    """
    status = library.status()
    if not status.available:
        pytest.skip(f"no CPU kernels: {status.reason}")
    with threads(1):
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def bits(x: torch.Tensor) -> torch.Tensor:
    """Return the bit patterns: -0.0 differs from 0.0, and a NaN equals itself."""
    return x.contiguous().view(_BITS[x.element_size()])


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def guarded(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Return ``[size]`` of NaN (or the smallest integer) before a forbidden page."""
    if not size:
        return torch.zeros(0, dtype=dtype)
    used = -(-size * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, used + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    page = ctypes.c_void_p(address + used), ctypes.c_size_t(mmap.PAGESIZE)
    assert _LIBC.mprotect(*page, 0) == 0
    offset = used - size * dtype.itemsize
    found = torch.frombuffer(memory, dtype=dtype, count=size, offset=offset)
    fill = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min
    return found.fill_(fill)


def at_the_end(x: torch.Tensor, *, row: int = 0, last: int = 0) -> torch.Tensor:
    """Copy ``[n]`` or ``[rows, n]`` to the very end of a storage, bit by bit.

    Args:
        x: what to copy.
        row: distance between rows, n by default; what lies between is NaN.
        last: length of the last row in memory, n by default.
    """
    if not x.numel():
        return x.clone()
    n = x.shape[-1]
    row = max(row, n)
    memory = guarded(x.numel() // n * row - row + max(last, n), x.dtype)
    view = memory.as_strided(x.shape, (row, 1)[-x.dim() :])
    integer = _BITS[x.element_size()]
    view.view(integer).copy_(x.view(integer))
    return view


def compacted(
    tokens: int,
    channels: int,
    dtype: torch.dtype,
    pattern: str = "8:16",
    seed: int = 0,
) -> CompactActivation:
    """Return a compact activation on guarded memory."""
    x = random(tokens, channels, dtype=dtype, seed=seed)
    found = compact_cpu(x, parse_pattern(pattern), "magnitude")
    values, indices = at_the_end(found.values), at_the_end(found.indices)
    return CompactActivation(values, indices, channels)


def expected_keep(x: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Select by integers, stably sorted: independent of the reference and of floats."""
    kept, group = pattern.group(x.shape[-1])
    magnitude = (bits(x).long() << 1 & (1 << 8 * x.element_size()) - 1).unflatten(
        -1, (-1, group)
    )
    order = magnitude.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(magnitude, dtype=torch.bool)
    return keep.scatter_(-1, order[..., :kept], True).flatten(-2)


@contextlib.contextmanager
def hostile_memory() -> Iterator[None]:
    """Make ``torch.empty`` return guarded NaN: unwritten and overrun elements show."""

    def empty(*shape, dtype=None, device=None):
        assert torch.device(device or "cpu").type == "cpu"
        sizes = shape[0] if shape and isinstance(shape[0], Sequence) else shape
        memory = guarded(torch.Size(sizes).numel(), dtype or torch.get_default_dtype())
        return memory.view(sizes)

    with mock.patch.object(torch, "empty", empty):
        yield


def exact_linear(
    x: CompactActivation, weight: torch.Tensor, **terms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the product in float64, and the sum of the absolute values of its terms.

    Written as a dense product: zeros where nothing was kept.
    """
    dense = torch.zeros(len(x.values), x.in_features, dtype=torch.float64)
    dense.scatter_(1, x.indices.long(), x.values.double())
    wide = weight.double()
    if x.scale is not None:
        dense *= x.scale.double()[:, None]
    sums = dense @ wide, dense.abs() @ wide.abs()
    others = [terms[name].double() for name in ("bias", "addend") if name in terms]
    if "token_shift" in terms:
        others.append(terms["token_shift"].double()[:, None] * terms["row_sum"])
    return sum(others, sums[0]), sum((o.abs() for o in others), sums[1])


def assert_rounded(
    found: torch.Tensor, exact: torch.Tensor, magnitude: torch.Tensor, terms: int
) -> None:
    """Check sums that are accumulated in float32 and rounded once.

    Args:
        found: the result.
        exact: the same in float64.
        magnitude: the sum of the absolute values of the terms, float64.
        terms: how many there are.
    """
    assert exact.dtype is torch.float64
    assert found.shape == exact.shape
    info = torch.finfo(found.dtype)
    accumulated = magnitude * (terms + 8) * 2.0**-24
    rounding = exact.abs() * info.eps / 2 + info.smallest_normal * info.eps
    error = (found.double() - exact).abs()
    worst = (error / (accumulated + rounding)).nan_to_num(torch.inf)
    assert not worst.numel() or worst.max() <= 1.0, f"{worst.max()} of the bound"


def ulps(found: torch.Tensor, expected: torch.Tensor) -> int:
    """Return the largest distance in units of the last place."""
    assert found.dtype is expected.dtype
    assert found.shape == expected.shape
    places = []
    for x in (found, expected):
        assert x.isfinite().all()
        integer = bits(x).long()
        lowest = -(1 << (8 * x.element_size() - 1))
        places.append(torch.where(integer < 0, lowest - integer, integer))
    return int((places[0] - places[1]).abs().max()) if found.numel() else 0
