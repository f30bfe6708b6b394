# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Selection within large groups, up to a whole row: one program for a group.

The N-th largest key is found bit by bit: a bit belongs to it if at least N keys are as
large as what is known with that bit set. Keys above it stay, and as many of its equals
as are still wanted, lower positions first. Places come from running sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmsparse.ops.sparsify.score_triton import (
    hand_in,
    is_last,
    is_nonzero,
    keys,
    load_channels,
    mean_of,
    narrow,
    shifted,
    write_scale,
)


@triton.jit
def rows_kernel(
    x,
    values,
    indices,
    counts,
    scale,
    shift_out,
    factor,
    channel_shift,
    token_shift,
    order,
    sparse,
    counters,
    counted,
    partials,
    tickets,
    x_stride,
    K: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    STATISTIC: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    PLAIN: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """Select in one group of one token; see ``lists_triton.list_tokens``.

    With ``indices`` None the result is dense: zeros in the dropped channels, C = K.
    The first BLOCK keys stay in registers while the bits are found; the rest of a
    longer group is read again for every bit, from the cache.
    Grid: (T, K // M).
    """
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = x + token * x_stride
    dense = tl.full([], 0, tl.int1)
    if sparse is not None:
        # Or, not assignment: the interpreter then knows that it is a bool.
        dense = dense | (tl.load(sparse + token) == 0)
    real = dense == 0
    if counted is not None:
        real = tl.load(counted + token) != 0
    shift = 0.0
    if STATISTIC:
        shift = mean_of(row, K, SPAN)
    elif token_shift is not None:
        shift = tl.load(token_shift + token)
    if part == 0:
        if counts is not None:
            tl.store(counts + token, tl.where(dense, K, K // M * N))
        if HAS_SHIFT:
            tl.store(shift_out + token, tl.where(dense, 0.0, shift))

    base = part * M
    limit = threshold(
        row,
        base,
        order,
        factor,
        channel_shift,
        shift,
        N,
        M,
        BITS,
        HAS_SHIFT,
        PLAIN,
        BLOCK,
    )
    above = count_above(
        row, base, limit, order, factor, channel_shift, shift, M, HAS_SHIFT, PLAIN, SPAN
    )
    kept = tl.full([], 0, tl.int32)
    ties = tl.full([], 0, tl.int32)
    nonzeros = tl.full([], 0, tl.int32)
    u1 = tl.full([], 0.0, tl.float64)
    u2 = tl.full([], 0.0, tl.float64)
    v1 = tl.full([], 0.0, tl.float64)
    v2 = tl.full([], 0.0, tl.float64)
    if scale is not None:
        first = shifted(tl.load(row), 0, True, channel_shift, shift, HAS_SHIFT)
        first = first.to(tl.float64)
    for start in range(0, M, SPAN):
        inside = start + tl.arange(0, SPAN) < M
        position = base + start + tl.arange(0, SPAN)
        channel, raw, wide = load_channels(
            row, position, inside, order, channel_shift, shift, HAS_SHIFT
        )
        key = keys(raw, wide, channel, inside, factor, PLAIN)
        tie = key == limit
        rank = above + ties + tl.cumsum(tie.to(tl.int32), axis=0) - 1
        keep = (key > limit) | (tie & (rank < N))
        slot = part * N + kept + tl.cumsum(keep.to(tl.int32), axis=0) - 1
        ties += tl.sum(tie.to(tl.int32), axis=0)
        kept += tl.sum(keep.to(tl.int32), axis=0)
        result = raw
        if HAS_SHIFT or channel_shift is not None:
            result = tl.where(dense, raw, narrow(wide, raw))
        stays = keep | (inside & dense)
        nonzeros += tl.sum((stays & is_nonzero(result)).to(tl.int32), axis=0)
        if indices is None:
            result = tl.where(stays, result, tl.zeros_like(result))
            tl.store(values + token * K + channel, result, mask=inside)
        else:
            # A dense token lists every channel at its own place.
            at = token * C + tl.where(dense, channel, slot)
            tl.store(values + at, result, mask=stays)
            tl.store(indices + at, channel, mask=stays)
        if scale is not None:
            exact = wide.to(tl.float64)
            off = tl.where(inside, exact - first, 0.0)
            stay = tl.where(keep, exact, 0.0)
            u1 += tl.sum(off, axis=0)
            u2 += tl.sum(off * off, axis=0)
            v1 += tl.sum(stay, axis=0)
            v2 += tl.sum(stay * stay, axis=0)

    if counters is not None and real:
        if part == 0:
            tl.atomic_add(counters, tl.full([], K, tl.int64), sem="relaxed")
        tl.atomic_add(counters + 1, nonzeros.to(tl.int64), sem="relaxed")
    if scale is not None:
        hand_in(partials, token, part, K // M, u1, u2, v1, v2)
        if is_last(tickets + token, K // M):
            write_scale(scale, partials, token, K // M, dense, K)


@triton.jit
def threshold(
    row,
    base,
    order,
    factor,
    channel_shift,
    shift,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    PLAIN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the N-th largest key of the group that starts at position ``base``."""
    offsets = tl.arange(0, BLOCK)
    inside = offsets < M
    channel, raw, wide = load_channels(
        row, base + offsets, inside, order, channel_shift, shift, HAS_SHIFT
    )
    held = keys(raw, wide, channel, inside, factor, PLAIN)
    limit = tl.full([], 0, tl.int32)
    for step in range(BITS):
        candidate = limit | (tl.full([], 1, tl.int32) << (BITS - 1 - step))
        found = tl.sum((held >= candidate).to(tl.int32), axis=0)
        for start in range(BLOCK, M, BLOCK):
            inside = start + offsets < M
            channel, raw, wide = load_channels(
                row,
                base + start + offsets,
                inside,
                order,
                channel_shift,
                shift,
                HAS_SHIFT,
            )
            key = keys(raw, wide, channel, inside, factor, PLAIN)
            found += tl.sum((key >= candidate).to(tl.int32), axis=0)
        limit = tl.where(found >= N, candidate, limit)
    return limit


@triton.jit
def count_above(
    row,
    base,
    limit,
    order,
    factor,
    channel_shift,
    shift,
    M: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    PLAIN: tl.constexpr,
    SPAN: tl.constexpr,
) -> tl.tensor:
    """Return how many keys of the group are larger than ``limit``."""
    offsets = tl.arange(0, SPAN)
    found = tl.zeros([SPAN], tl.int32)
    for start in range(0, M, SPAN):
        inside = start + offsets < M
        channel, raw, wide = load_channels(
            row, base + start + offsets, inside, order, channel_shift, shift, HAS_SHIFT
        )
        key = keys(raw, wide, channel, inside, factor, PLAIN)
        found += (key > limit).to(tl.int32)
    return tl.sum(found, axis=0)
