"""The ways to multiply dense tokens by a layer's weight, one function each."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nmsparse.ops.linear.cpu import stream_k_major
from nmsparse.ops.packed.cpu import packed_linear_cpu
from nmsparse.packed import PackedWeight
from vllm_sparse.cpu.weights import Weights

# (x [T, K], bias [O] or None) -> [T, O]
Product = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]

STOCK, STREAM, PACKED, MATMUL, UNPACK = "stock", "stream", "packed", "matmul", "unpack"
# Of sparse tokens: kept rows alone, or zeros for dropped channels and any product.
GATHER, PER_TOKEN, MASKED = "gather", "per_token", "masked"

# Rows of a packed weight that are dense at a time: a few MiB.
_UNPACK_ELEMENTS = 1 << 21


def products(weights: Weights, stock: Product | None) -> dict[str, Product]:
    """Return every way a layer has, the one for many tokens first.

    Args:
        weights: our copies.
        stock: vLLM's own product, None if its copy was dropped.
    """
    found: dict[str, Product] = {}
    if stock is not None:
        found[STOCK] = stock
    rows, packed = weights.rows, weights.packed
    if rows is not None:
        if stock is None:
            found[MATMUL] = _ordered(lambda x, bias: _matmul(x, rows, bias), weights)
        found[STREAM] = _ordered(lambda x, bias: stream_k_major(x, rows, bias), weights)
    if packed is not None:
        if not found:
            found[UNPACK] = lambda x, bias: _unpack(x, packed, bias)
        found[PACKED] = lambda x, bias: packed_linear_cpu(x, packed, bias)
    return found


def _ordered(product: Product, weights: Weights) -> Product:
    """Let a product take channels in the order of the rows."""
    order = weights.order
    if order is None:
        return product
    return lambda x, bias: product(x.index_select(1, order), bias)


def _matmul(
    x: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``x @ rows + bias``: rows are ``[K, O]``."""
    return x @ rows if bias is None else torch.addmm(bias.to(x.dtype), x, rows)


def _unpack(
    x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None
) -> torch.Tensor:
    """Unpack some rows at a time: bounded memory, for steps with many tokens."""
    out_features, in_features = packed.shape
    step = max(1, _UNPACK_ELEMENTS // max(1, in_features))
    out = torch.empty(x.shape[0], out_features, dtype=x.dtype)
    for start in range(0, out_features, step):
        stop = min(start + step, out_features)
        part = None if bias is None else bias[start:stop].to(x.dtype)
        dense = packed.rows(start, stop).unpack()
        out[:, start:stop] = torch.nn.functional.linear(x, dense, part)
    return out
