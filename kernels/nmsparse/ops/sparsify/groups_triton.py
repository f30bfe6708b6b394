# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Selection within small groups: one program for a token and a run of its groups.

Nothing is sorted: the rank of a channel is the number of channels of its group that
beat it, and it stays if fewer than N do.
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
    rank_of,
    shifted,
    write_scale,
)


@triton.jit(do_not_specialize=["steps", "parts"])
def groups_kernel(
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
    steps,
    parts,
    K: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    STATISTIC: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    PLAIN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Select in ``steps * G`` groups of one token; see ``lists_triton.list_tokens``.

    With ``indices`` None the result is dense: zeros in the dropped channels, C = K.
    P is M, padded to a power of two. Grid: (T, parts).
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
        shift = mean_of(row, K, BLOCK)
    elif token_shift is not None:
        shift = tl.load(token_shift + token)
    if part == 0:
        if counts is not None:
            tl.store(counts + token, tl.where(dense, K, K // M * N))
        if HAS_SHIFT:
            tl.store(shift_out + token, tl.where(dense, 0.0, shift))

    local = tl.arange(0, G)[:, None]
    place = tl.arange(0, P)[None, :]
    nonzeros = tl.zeros([G, P], tl.int32)
    if scale is not None:
        first = shifted(tl.load(row), 0, True, channel_shift, shift, HAS_SHIFT)
        first = first.to(tl.float64)
        u1 = tl.zeros([G, P], tl.float64)
        u2 = tl.zeros([G, P], tl.float64)
        v1 = tl.zeros([G, P], tl.float64)
        v2 = tl.zeros([G, P], tl.float64)
    for step in range(steps):
        number = (part * steps + step) * G + local
        position = number * M + place
        inside = (place < M) & (number < K // M)
        channel, raw, wide = load_channels(
            row, position, inside, order, channel_shift, shift, HAS_SHIFT
        )
        if N == M:
            keep = inside
            slot = position
        else:
            key = keys(raw, wide, channel, inside, factor, PLAIN)
            keep = inside & (rank_of(key, P) < N)
            slot = number * N + tl.cumsum(keep.to(tl.int32), axis=1) - 1
        result = raw
        if HAS_SHIFT or channel_shift is not None:
            result = tl.where(dense, raw, narrow(wide, raw))
        stays = keep | (inside & dense)
        nonzeros += (stays & is_nonzero(result)).to(tl.int32)
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
            if N == M:
                stay = off
            u1 += off
            u2 += off * off
            v1 += stay
            v2 += stay * stay

    if counters is not None and real:
        if part == 0:
            tl.atomic_add(counters, tl.full([], K, tl.int64), sem="relaxed")
        tl.atomic_add(counters + 1, tl.sum(nonzeros).to(tl.int64), sem="relaxed")
    if scale is not None:
        hand_in(
            partials,
            token,
            part,
            parts,
            tl.sum(u1),
            tl.sum(u2),
            tl.sum(v1),
            tl.sum(v2),
        )
        if is_last(tickets + token, parts):
            write_scale(scale, partials, token, parts, dense, K)
