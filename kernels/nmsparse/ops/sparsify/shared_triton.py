"""One list for all tokens of a step on a GPU, in two launches; see ``shared.py``.

First a program for each token finds its shift and its energy. Then a program for each
run of groups selects for all tokens.
"""

from __future__ import annotations

import torch

from nmsparse.ops.gpu import tickets
from nmsparse.ops.sparsify.arguments import Arguments, fill_empty, raw
from nmsparse.ops.sparsify.lists import TokenLists
from nmsparse.ops.sparsify.shared_groups_triton import (
    shared_groups_kernel,
    shared_rows_kernel,
)
from nmsparse.ops.sparsify.shared_tokens_triton import tokens_kernel
from nmsparse.ops.sparsify.tiles import MAX_GROUP, MEAN_BLOCK, row_tiles, shared_tiles


def list_shared(given: Arguments, index_dtype: torch.dtype) -> TokenLists:
    """Return one list for all tokens; see ``nmsparse.ops.sparsify.shared``."""
    x, tokens, channels = given.x, given.tokens, given.channels

    def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device=x.device)

    width = given.listed if given.sparse is None else channels
    found = TokenLists(
        floats(tokens, width, dtype=x.dtype),
        torch.empty(1, width, dtype=index_dtype, device=x.device),
        torch.empty(1, dtype=torch.int32, device=x.device),
        channels,
        given.listed,
        floats(tokens) if given.variance else None,
        floats(tokens) if given.shifts_tokens else None,
        None if given.sparse is None else torch.empty_like(given.sparse).bool(),
    )
    if not x.numel():
        fill_empty(given, found.scale, found.token_shift, found.counts)
        if found.sparse is not None and given.sparse is not None:
            found.sparse.copy_(given.sparse.bool().all())
        return found
    _launch(given, found)
    return found


def _launch(given: Arguments, found: TokenLists) -> None:
    x, tokens, channels = given.x, given.tokens, given.channels
    energy = torch.empty(tokens, dtype=torch.float64, device=x.device)
    shifts = None
    if given.shifts_tokens:
        shifts = torch.empty(tokens, dtype=torch.float32, device=x.device)
    grouped = given.group <= MAX_GROUP
    tiles = shared_tiles(channels, given.group) if grouped else None
    rows = row_tiles(given.group)
    programs = channels // given.group if tiles is None else tiles.parts
    partials = ticket = scores = None
    if given.variance:
        parts = programs * (1 if grouped else -(-given.group // rows.span))
        partials = torch.empty(tokens, 4, parts, dtype=torch.float64, device=x.device)
        ticket = tickets(x.device, 1)
    if tiles is None:
        scores = torch.empty(channels, dtype=torch.float32, device=x.device)
    pointers = (
        raw(x),
        raw(found.values),
        found.indices,
        found.counts,
        found.scale,
        energy,
        shifts,
        given.factor,
        given.channel_shift,
        given.order,
        given.sparse,
        given.counters,
        given.counted,
        partials,
        ticket,
        scores,
        x.stride(0),
        tokens,
        programs,
    )
    sizes = {
        "K": channels,
        "C": found.values.shape[1],
        "N": given.kept,
        "M": given.group,
        "HAS_SHIFT": given.shifts_tokens,
    }
    with torch.cuda.device_of(x):
        tokens_kernel[(tokens,)](
            raw(x),
            energy,
            shifts,
            found.token_shift,
            given.channel_shift,
            given.token_shift,
            given.sparse,
            None if found.sparse is None else found.sparse.view(torch.uint8),
            given.counted,
            x.stride(0),
            tokens,
            K=channels,
            STATISTIC=given.statistic,
            HAS_SHIFT=given.shifts_tokens,
            BLOCK=MEAN_BLOCK,
            num_warps=4,
        )
        if tiles is not None:
            shared_groups_kernel[(programs,)](
                *pointers, **sizes, P=tiles.padded, G=tiles.groups, num_warps=4
            )
        else:
            shared_rows_kernel[(programs,)](
                *pointers,
                **sizes,
                BLOCK=rows.held,
                SPAN=rows.span,
                num_warps=rows.warps,
            )
