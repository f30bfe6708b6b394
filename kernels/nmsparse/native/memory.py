"""Memory for weights that are streamed: on huge pages, rows in different cache sets."""

from __future__ import annotations

import ctypes

import torch

_HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14
# Rows are this many elements longer than O: with a power of two, gathered rows would
# compete for the same cache sets.
ROW_PADDING = 64


def streamed_empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialised CPU tensor, on huge pages where the system gives them.

    A gathered row then costs few address translations. It starts at a page boundary.
    """
    count = 1
    for size in shape:
        count *= size
    bytes_needed = count * dtype.itemsize
    raw = torch.empty(bytes_needed + _HUGE_PAGE, dtype=torch.uint8)
    start = -raw.data_ptr() % _HUGE_PAGE
    memory = raw[start : start + bytes_needed]
    _advise(memory.data_ptr(), bytes_needed)
    return memory.view(dtype).view(shape)


def _advise(address: int, count: int) -> None:
    """Ask for huge pages before the first touch; only advice, so failure is fine."""
    whole = count // _HUGE_PAGE * _HUGE_PAGE
    libc = ctypes.CDLL(None)
    if whole and hasattr(libc, "madvise"):
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(whole), _MADV_HUGEPAGE)


def k_major(weight: torch.Tensor) -> torch.Tensor:
    """Copy a weight to the layout ``linear`` reads.

    Args:
        weight: ``[O, K]``, as Hugging Face stores it. Not modified.

    Returns:
        ``[K, O]``, contiguous rows that are padded in memory to a multiple of 32
        and by 64 elements more; the padding is zero.
    """
    out_features, in_features = weight.shape
    row = -(-out_features // 32) * 32 + ROW_PADDING
    memory = streamed_empty((in_features, row), weight.dtype)
    memory[:, out_features:] = 0
    view = memory[:, :out_features]
    # In pieces: a transposing copy of a whole weight misses the caches.
    for start in range(0, out_features, 256):
        view[:, start : start + 256] = weight[start : start + 256].t()
    return view


def padded_rows(weight: torch.Tensor) -> bool:
    """Tell whether every row of ``[K, O]`` may be read to a multiple of 32 outputs."""
    if weight.dim() != 2 or not weight.shape[0]:
        return False
    row = -(-weight.shape[1] // 32) * 32
    last = weight.storage_offset() + (weight.shape[0] - 1) * weight.stride(0)
    room = weight.untyped_storage().nbytes() // weight.element_size()
    return row <= weight.stride(0) and last + row <= room
