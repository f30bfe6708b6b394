# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""What tokens bring to a shared list, and what they take from it.

``tokens_kernel`` finds each token's shift and energy. The rest are pieces of the
kernels that select: the scores, every token's values, and what there is once a step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmsparse.ops.sparsify.score_triton import (
    hand_in,
    is_last,
    is_nonzero,
    load_channels,
    mean_of,
    narrow,
    write_scale,
)


@triton.jit(do_not_specialize=["tokens"])
def tokens_kernel(
    x,
    energy,
    shifts,
    shift_out,
    channel_shift,
    token_shift,
    sparse,
    sparse_out,
    counted,
    x_stride,
    tokens,
    K: tl.constexpr,
    STATISTIC: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write a token's shift and the sum of its squares, -1 if it has no say.

    Grid: (T,).
    """
    token = tl.program_id(0).to(tl.int64)
    row = x + token * x_stride
    dense = is_dense(sparse, tokens)
    shift = 0.0
    if STATISTIC:
        shift = mean_of(row, K, BLOCK)
    elif token_shift is not None:
        shift = tl.load(token_shift + token)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, K, BLOCK):
        at = start + offsets
        _, _, wide = load_channels(
            row, at, at < K, None, channel_shift, shift, HAS_SHIFT
        )
        exact = tl.where(at < K, wide.to(tl.float64), 0.0)
        total += exact * exact
    found = tl.sum(total)
    silent = found == 0
    if counted is not None:
        silent = silent | (tl.load(counted + token) == 0)
    elif sparse is not None:
        silent = silent | (tl.load(sparse + token) == 0)
    tl.store(energy + token, tl.where(silent, -1.0, found))
    if HAS_SHIFT:
        tl.store(shifts + token, shift)
        tl.store(shift_out + token, tl.where(dense, 0.0, shift))
    if sparse is not None:
        tl.store(sparse_out + token, tl.where(dense, 0, 1))


@triton.jit
def is_dense(sparse, tokens) -> tl.tensor:
    """Return whether a token of the step has to stay dense."""
    found = tl.full([], 0, tl.int32)
    if sparse is not None:
        offsets = tl.arange(0, 64)
        for start in range(0, tokens, 64):
            at = start + offsets
            flags = tl.load(sparse + at, mask=at < tokens, other=1)
            found += tl.sum((flags == 0).to(tl.int32))
    # Or, so that the interpreter knows that it is a bool.
    return tl.full([], 0, tl.int1) | (found > 0)


@triton.jit
def votes(
    x,
    energy,
    shifts,
    channel,
    inside,
    factor,
    channel_shift,
    x_stride,
    tokens,
    HAS_SHIFT: tl.constexpr,
) -> tl.tensor:
    """Return the float32 scores of a tile of channels, token by token."""
    weight = 1.0
    if factor is not None:
        weight = tl.load(factor + channel, mask=inside, other=0.0)
    total = tl.zeros(channel.shape, tl.float64)
    shift = 0.0
    for _ in range(tokens):
        if HAS_SHIFT:
            shift = tl.load(shifts)
            shifts += 1
        _, _, wide = load_channels(
            x, channel, inside, None, channel_shift, shift, HAS_SHIFT
        )
        share = (wide * weight).to(tl.float64)
        whole = tl.load(energy)
        vote = share * share * (1.0 / whole)
        # -1 has no say. Infinite energy has: infinity times zero shows as NaN.
        total += tl.where(whole == -1.0, 0.0, vote)
        x += x_stride
        energy += 1
    score = total.to(tl.float32)
    # Any NaN is the largest NaN, so that its position decides.
    return tl.where(score == score, score, float("nan"))


@triton.jit
def take(
    x,
    values,
    shifts,
    counters,
    counted,
    sparse,
    channel_shift,
    partials,
    channel,
    inside,
    keep,
    at,
    dense,
    part,
    parts,
    x_stride,
    tokens,
    C: tl.constexpr,
    WHOLE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
) -> None:
    """Write one tile of every token's values, and hand in its sums.

    Args:
        x: ``[T, K]``.
        values: ``[T, C]``.
        shifts: ``[T]``.
        counters: ``[2]`` or None.
        counted: ``[T]`` or None.
        sparse: ``[T]`` or None.
        channel_shift: ``[K]`` or None.
        partials: ``[T, 4, parts]`` or None.
        channel: numbers of a tile.
        inside: which exist.
        keep: which stay.
        at: place of each in the list.
        dense: whether all stay as they are.
        part: number of this tile.
        parts: how many there are.
        x_stride: of a row of x.
        tokens: T.
        C: entries of a list.
        WHOLE: whether N is M.
        HAS_SHIFT: whether tokens are shifted.
    """
    stays = keep | (inside & dense)
    nonzeros = tl.full([], 0, tl.int64)
    token = tl.full([], 0, tl.int64)
    shift = 0.0
    for _ in range(tokens):
        row = x + token * x_stride
        if HAS_SHIFT:
            shift = tl.load(shifts + token)
        _, raw, wide = load_channels(
            row, channel, inside, None, channel_shift, shift, HAS_SHIFT
        )
        result = raw
        if HAS_SHIFT or channel_shift is not None:
            result = tl.where(dense, raw, narrow(wide, raw))
        tl.store(values + token * C + at, result, mask=stays)
        if counters is not None:
            found = tl.sum((stays & is_nonzero(result)).to(tl.int32)).to(tl.int64)
            if counted is not None:
                found = tl.where(tl.load(counted + token) != 0, found, 0)
            elif sparse is not None:
                found = tl.where(tl.load(sparse + token) != 0, found, 0)
            nonzeros += found
        if partials is not None:
            _, _, first = load_channels(
                row, 0, True, None, channel_shift, shift, HAS_SHIFT
            )
            exact = wide.to(tl.float64)
            off = tl.where(inside, exact - first.to(tl.float64), 0.0)
            stay = tl.where(keep, exact, 0.0)
            if WHOLE:
                stay = off
            hand_in(
                partials,
                token,
                part,
                parts,
                tl.sum(off),
                tl.sum(off * off),
                tl.sum(stay),
                tl.sum(stay * stay),
            )
        token += 1
    if counters is not None:
        tl.atomic_add(counters + 1, nonzeros, sem="relaxed")


@triton.jit
def finish(
    counts,
    scale,
    partials,
    ticket,
    counters,
    counted,
    sparse,
    dense,
    programs,
    parts,
    tokens,
    LISTED: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """Write what there is once for a step, and the scales, by the last program."""
    if tl.program_id(0) == 0:
        tl.store(counts, tl.where(dense, K, LISTED))
        if counters is not None:
            offsets = tl.arange(0, 64)
            found = tl.full([], 0, tl.int64)
            for start in range(0, tokens, 64):
                at = start + offsets
                flags = (at < tokens).to(tl.int32)
                if counted is not None:
                    flags = (tl.load(counted + at, mask=at < tokens, other=0) != 0).to(
                        tl.int32
                    )
                elif sparse is not None:
                    flags = (tl.load(sparse + at, mask=at < tokens, other=0) != 0).to(
                        tl.int32
                    )
                found += tl.sum(flags).to(tl.int64)
            tl.atomic_add(counters, found * K, sem="relaxed")
    if scale is not None:
        last = is_last(ticket, programs)
        if last:
            token = tl.full([], 0, tl.int64)
            for _ in range(tokens):
                write_scale(scale, partials, token, parts, dense, K)
                token += 1
