# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""One list of channels for all tokens of a step: a row is read once for 16 of them.

The rows of the list are the right side of ``tl.dot``, and the tokens, padded to 16, its
left side. The bytes of the weight are those of one token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmsparse.ops.linear.finish_triton import combine, finish


@triton.jit(
    do_not_specialize=[
        "tokens",
        "list_units",
        "columns",
        "value_units",
        "index_stride",
        "row_units",
        "addend_stride",
    ],
    do_not_specialize_on_alignment=[
        "indices",
        "counts",
        "scale",
        "token_shift",
        "sparse",
    ],
)
def shared_kernel(
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
    list_units,
    columns,
    value_units,
    index_stride,
    row_units,
    addend_stride,
    UNIT: tl.constexpr,
    LIST_UNIT: tl.constexpr,
    SCALAR_WEIGHT_SCALE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Multiply ``BLOCK_T`` tokens by one share of the list's rows, ``BLOCK_O`` wide.

    Arguments as in ``token_kernel``, with one row of indices and counts; C and the row
    stride of values come in units of ``LIST_UNIT`` elements, so that values are loaded
    as wide as rows. ``WIDEN`` multiplies in float32: Triton's interpreter takes
    bfloat16 operands of ``tl.dot`` for integers.
    """
    outputs = columns * UNIT
    groups = tl.cdiv(tokens, BLOCK_T)
    block = tl.program_id(0)
    token = block % groups * BLOCK_T + tl.arange(0, BLOCK_T)
    column = block // groups * BLOCK_O + tl.arange(0, BLOCK_O)
    live = token < tokens
    inside = column < outputs
    listed = list_units * LIST_UNIT
    count = listed
    if counts is not None:
        count = tl.load(counts)
    chunks = tl.cdiv(count, BLOCK_K)
    split = tl.program_id(1)
    begin = chunks * split // SPLITS
    end = chunks * (split + 1) // SPLITS
    value_row = values + (token.to(tl.int64)[:, None] * value_units * LIST_UNIT)

    entry = begin * BLOCK_K + tl.arange(0, BLOCK_K)
    channel = tl.load(indices + entry, mask=entry < count, other=0)
    acc = tl.zeros([BLOCK_T, BLOCK_O], dtype=tl.float32)
    for _ in tl.range(begin, end, num_stages=STAGES):
        counted = entry < count
        at = channel.to(tl.int64)[:, None] * row_units * UNIT + column[None, :]
        rows = tl.load(
            weight + at,
            mask=counted[:, None] & inside[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        # Masked by C, whose alignment is known, and not by the count. Entries beyond
        # the count may hold anything, so zeros of the rows are not enough.
        value = tl.load(
            value_row + entry[None, :],
            mask=live[:, None] & (entry < listed)[None, :],
            other=0.0,
        )
        value = tl.where(counted[None, :], value, 0.0)
        entry += BLOCK_K
        channel = tl.load(indices + entry, mask=entry < count, other=0)
        if WIDEN:
            acc = tl.dot(value.to(tl.float32), rows.to(tl.float32), acc)
        else:
            # An 8-bit weight is exact in every dtype of values.
            rows = rows.to(value.dtype)
            acc = tl.dot(value, rows, acc, input_precision="ieee")

    used = live[:, None] & inside[None, :]
    is_last = True
    if SPLITS > 1:
        acc, is_last = combine(acc, used, partials, tickets, SPLITS)
    if is_last:
        finish(
            acc,
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
            SCALAR_WEIGHT_SCALE,
        )
