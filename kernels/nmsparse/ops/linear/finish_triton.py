# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The end of a gathered product: splits are added up, and the terms of ``linear``.

Which program adds up the splits: the one that arrives last. Every program stores its
partial sums and then takes a ticket. The barrier puts the stores of all its threads
before the one atomic, which releases them to the device and acquires those of the
programs before it. Sums are read around L1, which may hold older ones, and added in the
order of the splits whoever is last, so that the result never depends on the order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def combine(
    acc, used, partials, tickets, SPLITS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Add up the splits of one block of outputs; program 0 is the block, 1 the split.

    Args:
        acc: ``[rows, BLOCK_O]`` float32, the sums of this program.
        used: ``[rows, BLOCK_O]``, which of them there are. Rows that only pad a block
            of tokens are never written, so that nothing is spent on them.
        partials: ``[blocks, SPLITS, rows, BLOCK_O]`` float32.
        tickets: ``[blocks]`` int32, zero between launches.
        SPLITS: programs that share a block.

    Returns:
        The sums of all splits, and whether this program has them.
    """
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    block = tl.program_id(0)
    inner = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    first = partials + block.to(tl.int64) * (SPLITS * ROWS * COLUMNS) + inner
    tl.store(first + tl.program_id(1) * (ROWS * COLUMNS), acc, mask=used)
    tl.debug_barrier()
    arrived = tl.atomic_add(tickets + block, 1, sem="acq_rel", scope="gpu")
    is_last = arrived == SPLITS - 1
    if is_last:
        acc = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        for split in tl.static_range(SPLITS):
            at = first + split * (ROWS * COLUMNS)
            acc += tl.load(at, mask=used, other=0.0, cache_modifier=".cg")
        tl.store(tickets + block, 0)
    return acc, is_last


@triton.jit
def finish(
    total,
    used,
    token,
    live,
    column,
    inside,
    outputs,
    out,
    weight_scale,
    scale,
    output_scale,
    token_shift,
    row_sum,
    constant,
    addend,
    addend_stride,
    bias,
    sparse,
    SCALAR_WEIGHT_SCALE: tl.constexpr,
) -> None:
    """Apply the terms of ``nmsparse.linear`` and round once.

    A term that is None leaves no instruction behind.

    Args:
        total: ``[rows, BLOCK_O]`` float32.
        used: ``[rows, BLOCK_O]``, which of them there are.
        token: ``[rows]`` int32.
        live: ``[rows]``, whether there is such a token.
        column: ``[BLOCK_O]`` int32.
        inside: ``[BLOCK_O]``, whether there is such an output.
        outputs: O.
        out: ``[T, O]``.
        weight_scale: ``[O]`` or scalar float32, or None.
        scale: ``[T]`` float32 or None.
        output_scale: ``[O]`` or None.
        token_shift: ``[T]`` float32 or None.
        row_sum: ``[O]``, with token_shift.
        constant: ``[O]`` or None.
        addend: ``[T, O]`` or None.
        addend_stride: elements between rows of addend.
        bias: ``[O]`` or None.
        sparse: ``[T]`` uint8, 0 for a dense token; None if there is none.
        SCALAR_WEIGHT_SCALE: weight_scale is one number.
    """
    if weight_scale is not None:
        if SCALAR_WEIGHT_SCALE:
            total *= tl.load(weight_scale)
        else:
            total *= tl.load(weight_scale + column, mask=inside)[None, :]
    y = total
    if scale is not None:
        y *= tl.load(scale + token, mask=live)[:, None]
    if output_scale is not None:
        y *= 1 + tl.load(output_scale + column, mask=inside).to(tl.float32)[None, :]
    if token_shift is not None:
        unit = tl.load(row_sum + column, mask=inside).to(tl.float32)
        y += tl.load(token_shift + token, mask=live)[:, None] * unit[None, :]
    if constant is not None:
        y += tl.load(constant + column, mask=inside).to(tl.float32)[None, :]
    # int64: T * O may pass 2^31.
    row = token.to(tl.int64)[:, None]
    if addend is not None:
        at = addend + row * addend_stride + column[None, :]
        y += tl.load(at, mask=used).to(tl.float32)
    if sparse is not None:
        # where, not a product: an infinite term must not reach a dense token.
        is_sparse = tl.load(sparse + token, mask=live, other=0) != 0
        y = tl.where(is_sparse[:, None], y, total)
    if bias is not None:
        y += tl.load(bias + column, mask=inside).to(tl.float32)[None, :]
    result = y.to(out.dtype.element_ty)
    tl.store(out + row * outputs + column[None, :], result, mask=used)
