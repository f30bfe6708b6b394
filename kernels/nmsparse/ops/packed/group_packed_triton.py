"""``group_packed_linear`` on a GPU: stored values side by side, x picked for each.

As every group stores N values, the place of a value follows from its channel: k // M *
N, plus its rank in the group. One token and groups of 1, 2, 4, 8, or of 16 with at most
8 values: values are read in long runs, and a table says for 8 bits at once which
channels they belong to. A step handles what is stored, not what there was.

Other patterns and several tokens run the kernel of ``packed_linear``, without offsets.
"""

# Kernel arguments are typed by Triton.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nmsparse.ops.packed.expand_triton import dense_product, load_bias
from nmsparse.ops.packed.group_packed import GroupPacked
from nmsparse.ops.packed.packed_triton import multiply_stored
from nmsparse.ops.packed.tiles import PackedTiles, listed_tiles
from nmsparse.pattern import NMPattern

_TABLES: dict[torch.device, torch.Tensor] = {}


def group_packed_linear_triton(
    x: torch.Tensor,
    weight: GroupPacked,
    bias: torch.Tensor | None,
    *,
    tiles: PackedTiles | None = None,
    listed: bool = True,
) -> torch.Tensor:
    """Return ``[T, O]`` for ``x`` (``[T, K]``), T at most 16.

    Args:
        x: ``[T, K]`` in the dtype of the weight, any strides.
        weight: ``[O, K]``, packed, on the device of ``x``.
        bias: ``[O]`` of any float dtype, or None.
        tiles: shape of a program; None to choose it.
        listed: False to run the kernel of ``packed_linear`` for one token too.

    Raises:
        ValueError: for more tokens, or tiles that do not fit them.
    """
    pattern = weight.pattern
    if listed and x.shape[0] == 1 and has_lists(pattern) and weight.values.numel():
        table = position_table(x.device)
        if table is not None:
            return _multiply_listed(x, weight, bias, table, tiles)
    return multiply_stored(
        x,
        weight.bits,
        weight.values,
        bias,
        kept=pattern.n,
        group=pattern.m,
        tiles=tiles,
    )


def has_lists(pattern: NMPattern) -> bool:
    """Return whether 8 positions hold the values of one or two bytes of channels."""
    return 8 % pattern.m == 0 or (pattern.m == 16 and pattern.n <= 8)


def position_table(device: torch.device) -> torch.Tensor | None:
    """Return ``[256]`` int32: nibble j of entry b is the place of the j-th set bit.

    Made once a device. None while a CUDA graph is captured and there is none yet: what
    is allocated then belongs to the graph.
    """
    if device not in _TABLES:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        entries = []
        for byte in range(256):
            places = [bit for bit in range(8) if byte >> bit & 1]
            entries.append(sum(bit << 4 * j for j, bit in enumerate(places)))
        _TABLES[device] = torch.tensor(entries, dtype=torch.int32, device=device)
    return _TABLES[device]


def _multiply_listed(
    x: torch.Tensor,
    weight: GroupPacked,
    bias: torch.Tensor | None,
    table: torch.Tensor,
    tiles: PackedTiles | None,
) -> torch.Tensor:
    """Launch the kernel for one token and a pattern with lists."""
    (out_features, in_features), pattern = weight.shape, weight.pattern
    out = torch.empty(1, out_features, dtype=x.dtype, device=x.device)
    tiles = listed_tiles(in_features) if tiles is None else tiles
    span = max(8, pattern.m)  # channels of a list: one byte, or two
    _listed_kernel[(triton.cdiv(out_features, tiles.block_o),)](
        x if x.stride(1) == 1 else x.contiguous(),
        weight.bits.view(torch.uint8),
        weight.values,
        table,
        weight.values if bias is None else bias,
        out,
        in_features,
        out_features,
        weight.bits.shape[1] * 8,
        weight.values.shape[1],
        HAS_BIAS=bias is not None,
        KEPT=pattern.n,
        GROUP=pattern.m,
        SPAN=span,
        LISTED=span // pattern.m * pattern.n,
        PLACES=triton.next_power_of_2(span // pattern.m * pattern.n),
        BLOCK_O=tiles.block_o,
        LISTS=tiles.block_k // span,
        num_warps=tiles.warps,
    )
    return out


@triton.jit
def _load_lists(
    row_bits,
    table,
    row_exists,
    first,
    in_features,
    SPAN: tl.constexpr,
    LISTS: tl.constexpr,
):
    """Return positions of stored channels, a nibble each, ``[BLOCK_O, LISTS]`` int32.

    ``first`` is a list. Lists beyond the row are empty.
    """
    place = first + tl.arange(0, LISTS)
    exists = row_exists[:, None] & (place * SPAN < in_features)[None, :]
    if SPAN == 8:
        byte = tl.load(row_bits[:, None] + place[None, :], mask=exists, other=0)
        return tl.load(table + byte.to(tl.int32))
    # Two bytes that hold at most 8 values together: the second list follows the first.
    at = row_bits[:, None] + 2 * place[None, :]
    low = tl.load(at, mask=exists, other=0).to(tl.int32)
    high = tl.load(at + 1, mask=exists, other=0).to(tl.int32)
    count = low - ((low >> 1) & 0x55)
    count = (count & 0x33) + ((count >> 2) & 0x33)
    count = (count + (count >> 4)) & 0x0F
    behind = tl.load(table + high) + -0x77777778  # 0x88888888: 8 places on, each
    # In two steps, because 8 values move it by all of its 32 bits.
    return tl.load(table + low) | ((behind << (2 * count)) << (2 * count))


@triton.jit
def _listed_kernel(
    x,
    bits,
    values,
    table,
    bias,
    out,
    in_features,
    out_features,
    bits_stride,
    values_stride,
    HAS_BIAS: tl.constexpr,
    KEPT: tl.constexpr,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    LISTED: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCK_O: tl.constexpr,
    LISTS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    row_exists = rows < out_features
    row_bits = bits + rows * bits_stride
    row_values = values + rows * values_stride
    used = (in_features + SPAN - 1) // SPAN
    place = tl.arange(0, PLACES)
    acc = tl.zeros([BLOCK_O, LISTS, PLACES], tl.float32)
    unmet = tl.zeros([LISTS * SPAN], tl.float32)
    coming = _load_lists(row_bits, table, row_exists, 0, in_features, SPAN, LISTS)
    for first in range(0, used, LISTS):
        here = coming
        # Asked for now, needed in the next step: one wait for memory a step, not two.
        coming = _load_lists(
            row_bits, table, row_exists, first + LISTS, in_features, SPAN, LISTS
        )
        lists = first + tl.arange(0, LISTS)
        at = lists[:, None] * LISTED + place[None, :]
        # The last list of a row may be shorter.
        is_stored = (place < LISTED)[None, :] & (at < values_stride)
        is_stored = row_exists[:, None, None] & is_stored[None, :, :]
        weight_at = row_values[:, None, None] + at[None, :, :]
        weight = tl.load(weight_at, mask=is_stored, other=0)
        position = (here[:, :, None] >> (4 * place[None, None, :])) & 15
        channel = (lists * SPAN)[None, :, None] + position
        mine = tl.load(x + channel, mask=is_stored, other=0)
        acc += weight.to(tl.float32) * mine.to(tl.float32)
        every = first * SPAN + tl.arange(0, LISTS * SPAN)
        all_mine = tl.load(x + every, mask=every < in_features, other=0)
        unmet += all_mine.to(tl.float32) * 0.0
    result = tl.sum(tl.sum(acc, 2), 1)
    # An infinity or NaN in x also meets the zeros that are not stored, as it does in
    # the reference: NaN. Rare, so it is seen at the end, and the product made again.
    if tl.sum(unmet, 0) != 0.0:
        result = dense_product(
            x,
            row_bits,
            row_values,
            row_exists,
            in_features,
            False,
            KEPT,
            GROUP,
            BLOCK_O,
            16,  # small pieces: this must not cost the other loop registers
        )
    result += load_bias(bias, rows, row_exists, HAS_BIAS, BLOCK_O)
    tl.store(out + rows, result.to(out.dtype.element_ty), mask=row_exists)
