# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Selection for all tokens of a step at once: in small groups, and in large ones.

A program adds up the tokens' votes for its channels, selects, and writes its part of
every token's values. ``shared.py`` says what is computed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmsparse.ops.sparsify.rows_triton import count_above, threshold
from nmsparse.ops.sparsify.score_triton import rank_of
from nmsparse.ops.sparsify.shared_tokens_triton import finish, is_dense, take, votes


@triton.jit(do_not_specialize=["tokens", "programs"])
def shared_groups_kernel(
    x,
    values,
    indices,
    counts,
    scale,
    energy,
    shifts,
    factor,
    channel_shift,
    order,
    sparse,
    counters,
    counted,
    partials,
    ticket,
    scores,
    x_stride,
    tokens,
    programs,
    K: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
) -> None:
    """Select in G groups for all tokens. Grid: (programs,). ``scores`` is not used."""
    dense = is_dense(sparse, tokens)
    part = tl.program_id(0)
    place = tl.arange(0, P)[None, :]
    number = part * G + tl.arange(0, G)[:, None]
    position = number * M + place
    inside = (place < M) & (number < K // M)
    channel = position
    if order is not None:
        channel = tl.load(order + position, mask=inside, other=0)
    if N == M:
        keep = inside
        slot = position
    else:
        score = votes(
            x,
            energy,
            shifts,
            channel,
            inside,
            factor,
            channel_shift,
            x_stride,
            tokens,
            HAS_SHIFT,
        )
        key = tl.where(inside, score.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)
        keep = inside & (rank_of(key, P) < N)
        slot = number * N + tl.cumsum(keep.to(tl.int32), axis=1) - 1
    # A dense step lists every channel at its own place.
    at = tl.where(dense, channel, slot)
    tl.store(indices + at, channel, mask=keep | (inside & dense))
    take(
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
        programs,
        x_stride,
        tokens,
        C,
        N == M,
        HAS_SHIFT,
    )
    finish(
        counts,
        scale,
        partials,
        ticket,
        counters,
        counted,
        sparse,
        dense,
        programs,
        programs,
        tokens,
        K // M * N,
        K,
    )


@triton.jit(do_not_specialize=["tokens", "programs"])
def shared_rows_kernel(
    x,
    values,
    indices,
    counts,
    scale,
    energy,
    shifts,
    factor,
    channel_shift,
    order,
    sparse,
    counters,
    counted,
    partials,
    ticket,
    scores,
    x_stride,
    tokens,
    programs,
    K: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """Select in one group for all tokens. Grid: (K // M,).

    ``scores`` ``[K]`` float32 by position is what the program writes and then reads.
    """
    dense = is_dense(sparse, tokens)
    part = tl.program_id(0)
    base = part * M
    offsets = tl.arange(0, SPAN)
    for start in range(0, M, SPAN):
        inside = start + offsets < M
        position = base + start + offsets
        channel = position
        if order is not None:
            channel = tl.load(order + position, mask=inside, other=0)
        score = votes(
            x,
            energy,
            shifts,
            channel,
            inside,
            factor,
            channel_shift,
            x_stride,
            tokens,
            HAS_SHIFT,
        )
        tl.store(scores + position, score, mask=inside)
    # Every thread reads what others of this program stored.
    tl.debug_barrier()
    # Scores are a row without order, factor and shift.
    limit = threshold(scores, base, None, None, None, 0.0, N, M, 31, False, True, BLOCK)
    above = count_above(
        scores, base, limit, None, None, None, 0.0, M, False, True, SPAN
    )
    kept = tl.full([], 0, tl.int32)
    ties = tl.full([], 0, tl.int32)
    tile = part * tl.cdiv(M, SPAN)
    for start in range(0, M, SPAN):
        inside = start + offsets < M
        position = base + start + offsets
        channel = position
        if order is not None:
            channel = tl.load(order + position, mask=inside, other=0)
        score = tl.load(scores + position, mask=inside, other=0.0)
        key = tl.where(inside, score.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)
        tie = key == limit
        rank = above + ties + tl.cumsum(tie.to(tl.int32), axis=0) - 1
        keep = (key > limit) | (tie & (rank < N))
        slot = part * N + kept + tl.cumsum(keep.to(tl.int32), axis=0) - 1
        ties += tl.sum(tie.to(tl.int32))
        kept += tl.sum(keep.to(tl.int32))
        at = tl.where(dense, channel, slot)
        tl.store(indices + at, channel, mask=keep | (inside & dense))
        take(
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
            tile,
            programs * tl.cdiv(M, SPAN),
            x_stride,
            tokens,
            C,
            False,
            HAS_SHIFT,
        )
        tile += 1
    finish(
        counts,
        scale,
        partials,
        ticket,
        counters,
        counted,
        sparse,
        dense,
        programs,
        programs * tl.cdiv(M, SPAN),
        tokens,
        K // M * N,
        K,
    )
