"""Selection of a step's tokens on a GPU, in one launch: lists, or zeros in place.

Nothing waits for the host and no shape depends on a value, so that a CUDA graph can
capture it. Results are the same in every run: sums have a fixed order, and only integer
counters are added to atomically. Which elements stay is what ``nmsparse.keep`` says.

With ``variance`` the parts of a token meet over tickets, which are the device's: calls
on two streams of one device at the same time must not both ask for it.
"""

from __future__ import annotations

import torch

from nmsparse.ops.gpu import tickets
from nmsparse.ops.online.terms import Sparsified
from nmsparse.ops.sparsify.arguments import Arguments, fill_empty, raw
from nmsparse.ops.sparsify.groups_triton import groups_kernel
from nmsparse.ops.sparsify.lists import TokenLists, index_dtype_of
from nmsparse.ops.sparsify.rows_triton import rows_kernel
from nmsparse.ops.sparsify.shared_triton import list_shared
from nmsparse.ops.sparsify.tiles import MAX_GROUP, MEAN_BLOCK, group_tiles, row_tiles


def list_tokens(
    x: torch.Tensor,
    *,
    kept: int,
    group: int,
    factor: torch.Tensor | None = None,
    channel_shift: torch.Tensor | None = None,
    token_shift: torch.Tensor | None = None,
    statistic: bool = False,
    variance: bool = False,
    channel_groups: torch.Tensor | None = None,
    sparse: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
    counted: torch.Tensor | None = None,
    shared: bool = False,
    index_dtype: torch.dtype | None = None,
) -> TokenLists:
    """List the channels that each token keeps, in ascending order of position.

    Args:
        x: ``[T, K]`` float16, bfloat16 or float32. Not modified.
        kept: N.
        group: M, divides K; K itself for unstructured selection. At most 65536.
        factor: ``[K]``, weight of a channel in the score, or None.
        channel_shift: ``[K]``, subtracted from every token, or None.
        token_shift: ``[T]``, subtracted from every channel of a token, or None.
        statistic: subtract each token's mean instead of a given token_shift.
        variance: return scales, ``sqrt(var(x - shift) / var(kept))``.
        channel_groups: ``[K]`` int64: position j of the groups is channel
            ``channel_groups[j]``. Factors and shifts stay those of channels. None for
            channels in their own order.
        sparse: ``[T]`` bool or uint8: which tokens are sparsified. The others stay
            dense, and rows have room for K entries. None for all.
        counters: ``[2]`` int64 on the device, incremented by the elements of counted
            tokens, and by those of their values that are listed and not zero.
        counted: ``[T]`` bool or uint8: tokens that count; None for those of ``sparse``.
        shared: one list for all tokens, see ``nmsparse.ops.sparsify.shared``.
        index_dtype: of the channel numbers; None for the narrowest one.

    Returns:
        Lists on the device of ``x``.

    Raises:
        ValueError: if a shape is wrong, M does not divide K, or a token shift is given
            twice.
        TypeError: for another dtype.
    """
    given = Arguments.of(
        x,
        kept,
        group,
        factor=factor,
        channel_shift=channel_shift,
        token_shift=token_shift,
        statistic=statistic,
        variance=variance,
        channel_groups=channel_groups,
        sparse=sparse,
        counters=counters,
        counted=counted,
    )
    if index_dtype is None:
        index_dtype = index_dtype_of(given.channels)
    if shared:
        return list_shared(given, index_dtype)
    tokens = given.tokens
    width = given.listed if sparse is None else given.channels
    values = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    indices = torch.empty(tokens, width, dtype=index_dtype, device=x.device)
    counts = torch.empty(tokens, dtype=torch.int32, device=x.device)
    scale, shift = _launch(given, values, indices, counts)
    return TokenLists(
        values,
        indices,
        counts,
        given.channels,
        given.listed,
        scale,
        shift,
        None if sparse is None else sparse.bool(),
    )


def mask_tokens(
    x: torch.Tensor,
    *,
    kept: int,
    group: int,
    factor: torch.Tensor | None = None,
    channel_shift: torch.Tensor | None = None,
    token_shift: torch.Tensor | None = None,
    statistic: bool = False,
    variance: bool = False,
    channel_groups: torch.Tensor | None = None,
    sparse: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
    counted: torch.Tensor | None = None,
) -> Sparsified:
    """Return the tokens with zeros in the channels that :func:`list_tokens` drops.

    Arguments and errors are those of :func:`list_tokens`.

    Returns:
        ``values`` ``[T, K]`` contiguous, in the order of the channels; ``scale`` and
        ``token_shift`` ``[T]`` float32, None if not asked for; no residual. A token
        that is not sparsified is x itself, with scale 1 and shift 0.
    """
    given = Arguments.of(
        x,
        kept,
        group,
        factor=factor,
        channel_shift=channel_shift,
        token_shift=token_shift,
        statistic=statistic,
        variance=variance,
        channel_groups=channel_groups,
        sparse=sparse,
        counters=counters,
        counted=counted,
    )
    values = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    scale, shift = _launch(given, values, None, None)
    return Sparsified(values, scale, shift)


def _launch(
    given: Arguments,
    values: torch.Tensor,
    indices: torch.Tensor | None,
    counts: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Fill what is given and return scale and token shift."""
    x, tokens, channels = given.x, given.tokens, given.channels
    scale = shift = None
    if given.variance:
        scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    if given.shifts_tokens:
        shift = torch.empty(tokens, dtype=torch.float32, device=x.device)
    if not x.numel():
        fill_empty(given, scale, shift, counts)
        return scale, shift
    grouped = given.group <= MAX_GROUP
    tiles = group_tiles(tokens, channels, given.group) if grouped else None
    parts = channels // given.group if tiles is None else tiles.parts
    partials = arrivals = None
    if given.variance:
        partials = torch.empty(tokens, 4, parts, dtype=torch.float64, device=x.device)
        arrivals = tickets(x.device, tokens)
    pointers = (
        raw(x),
        raw(values),
        indices,
        counts,
        scale,
        shift,
        given.factor,
        given.channel_shift,
        given.token_shift,
        given.order,
        given.sparse,
        given.counters,
        given.counted,
        partials,
        arrivals,
        x.stride(0),
    )
    sizes = {
        "K": channels,
        "C": values.shape[1],
        "N": given.kept,
        "M": given.group,
        "STATISTIC": given.statistic,
        "HAS_SHIFT": given.shifts_tokens,
        "PLAIN": given.is_plain,
    }
    with torch.cuda.device_of(x):
        if tiles is not None:
            groups_kernel[tokens, parts](
                *pointers,
                tiles.steps,
                parts,
                **sizes,
                P=tiles.padded,
                G=tiles.groups,
                BLOCK=MEAN_BLOCK,
                num_warps=4,
            )
        else:
            rows = row_tiles(given.group)
            rows_kernel[tokens, parts](
                *pointers,
                **sizes,
                BITS=given.key_bits,
                BLOCK=rows.held,
                SPAN=rows.span,
                num_warps=rows.warps,
            )
    return scale, shift
