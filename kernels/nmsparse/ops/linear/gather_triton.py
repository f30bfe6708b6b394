"""Triton ``linear``: tokens times the rows of their channels, read where they lie.

Two kernels: a list for each token (``token_triton.py``), and one list for all
(``shared_triton.py``). Both split lists over programs and finish alike.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from nmsparse.ops.linear.list_terms import Terms, check_lists
from nmsparse.ops.linear.shared_triton import shared_kernel
from nmsparse.ops.linear.tiles import SHARED_TOKENS, GatherTiles, default_tiles
from nmsparse.ops.linear.token_triton import token_kernel
from nmsparse.ops.linear.workspace import Workspace

if TYPE_CHECKING:
    from nmsparse.ops.sparsify import CompactActivation
    from nmsparse.ops.sparsify.lists import TokenLists

_VECTOR_BYTES = 16


def gather_lists(
    lists: TokenLists,
    weight: torch.Tensor,
    *,
    weight_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    row_sum: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
    output_scale: torch.Tensor | None = None,
    constant: torch.Tensor | None = None,
    tiles: GatherTiles | None = None,
    workspace: Workspace | None = None,
) -> torch.Tensor:
    """Multiply listed channels by a K-major weight.

    A sparse token's result is that of :func:`nmsparse.linear`. A dense token's
    (``lists.sparse`` false) is the sum and the bias.

    Args:
        lists: values and channels of T tokens.
        weight: ``[K, O]``, rows contiguous, at any stride: a multiple of 16 bytes, as
            O, is read fastest. The dtype of the values, or float8_e4m3fn.
        weight_scale: ``[O]`` or one float32 that a float8 weight is multiplied by.
        bias: ``[O]`` or None.
        row_sum: ``[O]``, the weight summed over K; needed with ``lists.token_shift``.
        addend: ``[T, O]`` or None.
        output_scale: ``[O]`` or None.
        constant: ``[O]`` or None.
        tiles: how to cut the product; None to choose by sizes.
        workspace: of this stream; None for the device's.

    Returns:
        ``[T, O]`` in the dtype of the values, rounded once.

    Raises:
        ValueError: if shapes or strides do not fit, or row_sum is missing.
        TypeError: if the dtype of the weight does not fit.
        RuntimeError: if the workspace must grow while a CUDA graph is captured, or the
            device cannot read float8.
    """
    terms = Terms(
        weight_scale=weight_scale,
        scale=lists.scale,
        output_scale=output_scale,
        token_shift=lists.token_shift,
        row_sum=row_sum,
        constant=constant,
        addend=addend,
        bias=bias,
        sparse=lists.sparse,
    )
    check_lists(lists, weight, terms)
    return _product(
        lists.values,
        lists.indices,
        lists.counts,
        weight,
        terms,
        kept=lists.kept,
        tiles=tiles,
        workspace=workspace,
    )


def linear_triton(
    x: CompactActivation,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_shift: torch.Tensor | None = None,
    row_sum: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
    output_scale: torch.Tensor | None = None,
    constant: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``[T, O]``: the backend of :func:`nmsparse.linear`.

    Args:
        x: kept channels, int32 or int16. An index row of stride 0 (``expand``) is one
            list for all tokens.
        weight: ``[K, O]``; copied at every call unless its rows are contiguous.
        bias: ``[O]`` or None.
        token_shift: ``[T]`` or None.
        row_sum: ``[O]`` or None.
        addend: ``[T, O]`` or None.
        output_scale: ``[O]`` or None.
        constant: ``[O]`` or None.
    """
    indices = x.indices
    if indices.dtype not in (torch.int16, torch.int32):
        indices = indices.to(torch.int32)
    if indices.shape[0] > 1 and indices.stride(0) == 0:
        indices = indices[:1]
    if weight.stride(1) != 1 and weight.shape[1] > 1:
        weight = weight.contiguous()
    terms = Terms(
        scale=x.scale,
        output_scale=output_scale,
        token_shift=token_shift,
        row_sum=row_sum,
        constant=constant,
        addend=addend,
        bias=bias,
    )
    return _product(x.values, indices, None, weight, terms, kept=x.values.shape[1])


def _product(
    values: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor | None,
    weight: torch.Tensor,
    terms: Terms,
    *,
    kept: int,
    tiles: GatherTiles | None = None,
    workspace: Workspace | None = None,
) -> torch.Tensor:
    (tokens, listed), outputs = values.shape, weight.shape[1]
    device = values.device
    out = torch.empty(tokens, outputs, dtype=values.dtype, device=device)
    if not out.numel():
        return out
    shared = indices.shape[0] == 1 and tokens > 1
    if tiles is None:
        sizes = (tokens, kept, outputs, weight.element_size())
        tiles = default_tiles(*sizes, multiprocessors(device), shared=shared)
    if values.stride(1) != 1:
        values = values.contiguous()
    if indices.stride(1) != 1:
        indices = indices.contiguous()
    sparse = terms.sparse
    addend = _contiguous_rows(terms.addend)
    blocks = tiles.programs(tokens, outputs, shared=shared)
    partials, tickets = None, None
    if tiles.splits > 1:
        height = SHARED_TOKENS if shared else 1
        floats = blocks * tiles.splits * height * tiles.block_o
        workspace = Workspace.for_(device) if workspace is None else workspace
        partials, tickets = workspace.reserve(floats, blocks)
    row = weight.stride(0)
    unit = math.gcd(row, outputs, _VECTOR_BYTES // weight.element_size())
    weight_scale = _floats(terms.weight_scale)
    # One instruction to multiply and add: Triton is about to stop doing so by default.
    options: dict[str, Any] = {"num_warps": tiles.warps, "enable_fp_fusion": True}
    list_unit = 1
    if shared:
        list_unit = math.gcd(
            values.stride(0), listed, _VECTOR_BYTES // values.element_size()
        )
        options["LIST_UNIT"] = list_unit
        options["BLOCK_T"] = SHARED_TOKENS
        options["WIDEN"] = device.type == "cpu"
    kernel = shared_kernel if shared else token_kernel
    with _on(device):
        kernel[(blocks, tiles.splits)](
            out,
            values,
            indices,
            counts,
            weight,
            partials,
            tickets,
            weight_scale,
            _floats(terms.scale),
            _contiguous_rows(terms.output_scale),
            _floats(terms.token_shift),
            _contiguous_rows(terms.row_sum),
            _contiguous_rows(terms.constant),
            addend,
            _contiguous_rows(terms.bias),
            # bool and uint8 are one byte; as uint8 the kernel needs no conversion.
            None if sparse is None else sparse.contiguous().view(torch.uint8),
            tokens,
            listed // list_unit,
            outputs // unit,
            values.stride(0) // list_unit,
            indices.stride(0),
            row // unit,
            0 if addend is None else addend.stride(0),
            UNIT=unit,
            SCALAR_WEIGHT_SCALE=weight_scale is not None and weight_scale.numel() == 1,
            BLOCK_O=tiles.block_o,
            BLOCK_K=tiles.block_k,
            SPLITS=tiles.splits,
            STAGES=tiles.stages,
            **options,
        )
    return out


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; 1 where Triton interprets."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever device the tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _floats(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None:
        return None
    return tensor.to(torch.float32).contiguous()


def _contiguous_rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()
