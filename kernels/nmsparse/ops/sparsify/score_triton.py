# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Pieces of the selection kernels: values, shifts, keys, statistics.

bfloat16 travels as its bits (int16): widening is a shift, rounding is integer
arithmetic, and both are the same to the bit on a GPU and in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widen(raw) -> tl.tensor:
    """Return float32 of raw values: bits of bfloat16, or a float."""
    if raw.dtype == tl.int16:
        return (raw.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return raw.to(tl.float32)


@triton.jit
def narrow(wide, raw) -> tl.tensor:
    """Return ``wide`` (float32) as raw values of the type of ``raw``, to even."""
    if raw.dtype == tl.int16:
        bits = wide.to(tl.int32, bitcast=True)
        # Wraps for negative numbers as unsigned arithmetic does; 16 bits are taken.
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(wide == wide, rounded, 0x7FC0).to(tl.int16)
    else:
        return wide.to(raw.dtype)


@triton.jit
def is_nonzero(raw) -> tl.tensor:
    """Return where raw values are not 0 or -0. NaN is not 0."""
    if raw.dtype == tl.int16:
        return (raw & 0x7FFF) != 0
    else:
        return raw != 0


@triton.jit
def shifted(
    raw, channel, inside, channel_shift, token_shift, HAS_SHIFT: tl.constexpr
) -> tl.tensor:
    """Return ``raw - shift`` in float32, in the order of the reference."""
    wide = widen(raw)
    if channel_shift is not None:
        wide = wide - tl.load(channel_shift + channel, mask=inside, other=0.0)
    if HAS_SHIFT:
        wide = wide - token_shift
    return wide


@triton.jit
def load_channels(
    row, position, inside, order, channel_shift, shift, HAS_SHIFT: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return channel numbers, raw and shifted values at positions of one row.

    Args:
        row: address of the token's values.
        position: int32 tile of positions in the order of the groups.
        inside: which of them exist.
        order: ``[K]`` int64 channel at each position; None for its own number.
        channel_shift: ``[K]`` float32 or None.
        shift: of the token, float32.
        HAS_SHIFT: whether the token has one.
    """
    channel = position
    if order is not None:
        channel = tl.load(order + position, mask=inside, other=0)
    raw = tl.load(row + channel, mask=inside, other=0)
    return channel, raw, shifted(raw, channel, inside, channel_shift, shift, HAS_SHIFT)


@triton.jit
def keys(raw, wide, channel, inside, factor, PLAIN: tl.constexpr) -> tl.tensor:
    """Return int32 keys that order scores; -1 outside.

    PLAIN: neither shift nor factor. A 16-bit value is then its own key, 15 bits wide,
    so that even NaNs order as in the reference.
    """
    if PLAIN and raw.dtype == tl.int16:
        found = raw.to(tl.int32) & 0x7FFF
    elif PLAIN and raw.dtype == tl.float16:
        found = raw.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        score = tl.abs(wide)
        if factor is not None:
            score = score * tl.load(factor + channel, mask=inside, other=0.0)
        found = score.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(inside, found, -1)


@triton.jit
def rank_of(key, P: tl.constexpr) -> tl.tensor:
    """Return how many keys of its group beat each key: ``[G, P]`` to ``[G, P]``.

    A larger key beats, and among equal keys the one at the lower position.
    """
    mine = key[:, :, None]
    other = key[:, None, :]
    place = tl.arange(0, P)
    earlier = place[None, None, :] < place[None, :, None]
    beats = (other > mine) | ((other == mine) & earlier)
    return tl.sum(beats.to(tl.int32), axis=2)


@triton.jit
def mean_of(row, K: tl.constexpr, BLOCK: tl.constexpr) -> tl.tensor:
    """Return the mean of a row of K raw values, summed in float64, as float32."""
    total = tl.zeros([BLOCK], tl.float64)
    offsets = tl.arange(0, BLOCK)
    for start in range(0, K, BLOCK):
        at = start + offsets
        total += widen(tl.load(row + at, mask=at < K, other=0)).to(tl.float64)
    return (tl.sum(total, axis=0) / K).to(tl.float32)


@triton.jit
def scale_of(u1, u2, v1, v2, K: tl.constexpr) -> tl.tensor:
    """Return ``sqrt(var(u) / var(v))`` in float32; 1 if either is zero or no number.

    Args:
        u1: float64 sum of u - c, where c is one of the u: the condition of the
            one-pass formula is then at most K + 1, and float64 has room for that.
        u2: sum of their squares.
        v1: sum of v. A dropped channel is a zero, so c is 0.
        v2: sum of their squares.
        K: how many there are.
    """
    var_u = u2 / K - (u1 / K) * (u1 / K)
    var_v = v2 / K - (v1 / K) * (v1 / K)
    usable = (var_u > 0) & (var_v > 0)
    ratio = tl.where(usable, var_u, 1.0) / tl.where(usable, var_v, 1.0)
    return tl.sqrt(ratio).to(tl.float32)


@triton.jit
def hand_in(partials, token, part, parts, u1, u2, v1, v2) -> None:
    """Store one part's sums (see :func:`scale_of`) at ``[token, :, part]``.

    Args:
        partials: ``[T, 4, parts]`` float64.
        token: its number, int64.
        part: number of this part.
        parts: how many a token has.
        u1: float64, like the next three.
        u2: sum of the squares of what u1 sums.
        v1: sum.
        v2: sum of squares.
    """
    mine = partials + token * 4 * parts + part
    tl.store(mine, u1)
    tl.store(mine + parts, u2)
    tl.store(mine + 2 * parts, v1)
    tl.store(mine + 3 * parts, v2)


@triton.jit
def is_last(ticket, programs) -> tl.tensor:
    """Tell whether all other programs have stored what they had; then reset.

    Args:
        ticket: address of an int32 that is 0 before the first program comes.
        programs: how many come.
    """
    # All threads' stores come before the ticket, and the ticket before later loads.
    tl.debug_barrier()
    came = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    last = came == programs - 1
    # Nobody else looks at it any more.
    tl.store(ticket, 0, mask=last)
    return last


@triton.jit
def write_scale(scale, partials, token, parts, dense, K: tl.constexpr) -> None:
    """Write a token's scale from its parts, in their order, whoever came last."""
    first = partials + token * 4 * parts
    u1 = _sum(first, parts)
    u2 = _sum(first + parts, parts)
    v1 = _sum(first + 2 * parts, parts)
    v2 = _sum(first + 3 * parts, parts)
    tl.store(scale + token, tl.where(dense, 1.0, scale_of(u1, u2, v1, v2, K)))


@triton.jit
def _sum(first, count) -> tl.tensor:
    total = tl.zeros([64], tl.float64)
    offsets = tl.arange(0, 64)
    for start in range(0, count, 64):
        at = start + offsets
        # Not from L1: other programs wrote them.
        total += tl.load(first + at, mask=at < count, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)
