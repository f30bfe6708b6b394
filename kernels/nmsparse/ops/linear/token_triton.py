# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""A list of channels for each token: it reads the rows of its own and nothing else.

A program multiplies one token by one share of its list, ``BLOCK_O`` outputs wide.
Programs of one tile lie beside each other for all tokens: the lists of a step cover
about the same channels there, so that a row read for one is found in L2 by the next.

Sums are kept as ``[BLOCK_K, BLOCK_O]`` and added over the list once, at the end. With
``[BLOCK_O]`` sums every step would end in a reduction between warps, through shared
memory and a barrier, before the next rows may be used. The price is registers,
``BLOCK_K * BLOCK_O / (32 * warps)`` a thread, which ``tiles.py`` bounds.

Channel numbers are loaded a step ahead: the addresses of the next rows are known while
the rows of this step are on their way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmsparse.ops.linear.finish_triton import combine, finish


# Sizes that change from step to step must not compile a kernel anew, and nor must the
# addresses of what a step makes. Those of a layer may: they are always the same.
@triton.jit(
    do_not_specialize=[
        "tokens",
        "listed",
        "columns",
        "value_stride",
        "index_stride",
        "row_units",
        "addend_stride",
    ],
    do_not_specialize_on_alignment=[
        "values",
        "indices",
        "counts",
        "scale",
        "token_shift",
        "sparse",
    ],
)
def token_kernel(
    out,
    values,
    indices,
    counts,
    weight,
    partials,
    tickets,
    weight_scale,
    scale,
    output_scale,
    token_shift,
    row_sum,
    constant,
    addend,
    bias,
    sparse,
    tokens,
    listed,
    columns,
    value_stride,
    index_stride,
    row_units,
    addend_stride,
    UNIT: tl.constexpr,
    SCALAR_WEIGHT_SCALE: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Multiply one token by one share of its rows; grid ``(T * O tiles, SPLITS)``.

    Args:
        out: ``[T, O]``.
        values: ``[T, C]``.
        indices: ``[T, C]`` int16 or int32; stride 0 for one list.
        counts: ``[T]`` int32, entries that count; None for ``listed``.
        weight: ``[K, O]``.
        partials: see ``combine``.
        tickets: see ``combine``.
        weight_scale: see ``finish``, as the terms that follow.
        scale: see ``finish``.
        output_scale: see ``finish``.
        token_shift: see ``finish``.
        row_sum: see ``finish``.
        constant: see ``finish``.
        addend: see ``finish``.
        bias: see ``finish``.
        sparse: see ``finish``.
        tokens: T.
        listed: C.
        columns: O in units.
        value_stride: elements between rows of values.
        index_stride: elements between rows of indices.
        row_units: units between rows of the weight.
        addend_stride: elements between rows of addend.
        UNIT: elements that divide O and the row stride, at most 16 bytes: Triton loads
            as wide as it can prove that addresses and masks allow.
        SCALAR_WEIGHT_SCALE: see ``finish``.
        BLOCK_O: outputs of a program.
        BLOCK_K: list entries of a step.
        SPLITS: programs that share a list.
        STAGES: steps in flight.
    """
    outputs = columns * UNIT
    block = tl.program_id(0)
    token = block % tokens
    column = block // tokens * BLOCK_O + tl.arange(0, BLOCK_O)
    inside = column < outputs
    count = listed
    if counts is not None:
        count = tl.load(counts + token)
    chunks = tl.cdiv(count, BLOCK_K)
    split = tl.program_id(1)
    # Shares differ by one chunk at most, so none is empty while there are enough.
    begin = chunks * split // SPLITS
    end = chunks * (split + 1) // SPLITS
    # int64: a step's lists and a weight may pass 2^31 elements.
    value_row = values + token.to(tl.int64) * value_stride
    index_row = indices + token.to(tl.int64) * index_stride

    entry = begin * BLOCK_K + tl.arange(0, BLOCK_K)
    channel = tl.load(index_row + entry, mask=entry < count, other=0)
    value = tl.load(value_row + entry, mask=entry < count, other=0.0)
    acc = tl.zeros([BLOCK_K, BLOCK_O], dtype=tl.float32)
    for _ in tl.range(begin, end, num_stages=STAGES):
        at = channel.to(tl.int64)[:, None] * row_units * UNIT + column[None, :]
        rows = tl.load(
            weight + at,
            mask=(entry < count)[:, None] & inside[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        coefficient = value.to(tl.float32)[:, None]
        # The last step reads a chunk of the next share: masked at the list's end.
        entry += BLOCK_K
        channel = tl.load(index_row + entry, mask=entry < count, other=0)
        value = tl.load(value_row + entry, mask=entry < count, other=0.0)
        acc += coefficient * rows.to(tl.float32)

    total = tl.sum(acc, axis=0)[None, :]
    live = tl.full([1], True, dtype=tl.int1)
    used = live[:, None] & inside[None, :]
    is_last = True
    if SPLITS > 1:
        total, is_last = combine(total, used, partials, tickets, SPLITS)
    if is_last:
        finish(
            total,
            used,
            token + tl.zeros([1], dtype=tl.int32),
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
            SCALAR_WEIGHT_SCALE,
        )
