"""What ``gpu_kernels.py`` compares: one product, by cuBLAS, by our kernels, by a peer.

Our kernels are called as a layer calls them: the selection is inside every sparse mode,
and no list is prepared. Every mode says what its result has to be, in float32 and by
pure torch, so that a wrong kernel is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import gpu_peer_triton as peer
import torch
from gpu_weights import Weights
from torch.nn.functional import linear

from nmsparse import parse_pattern
from nmsparse.criteria import DEFAULT_CRITERION
from nmsparse.keep import select_keep
from nmsparse.ops.linear import tiles as gather_tiles
from nmsparse.ops.linear.gather_triton import gather_lists
from nmsparse.ops.packed import cslt
from nmsparse.ops.packed.group_packed_triton import group_packed_linear_triton
from nmsparse.ops.packed.limits import MAX_TOKENS
from nmsparse.ops.packed.packed_triton import packed_linear_triton
from nmsparse.ops.packed.tiles import PackedTiles, default_tiles
from nmsparse.ops.sparsify.lists_triton import list_tokens, mask_tokens
from nmsparse.ops.sparsify.reference import sparsify_reference
from nmsparse.ops.sparsify.shared import shared_scores

STOCK, CONTROL = "cublas", "cublas again"
# How many activations take turns: real tokens differ from each other.
INPUTS = 4


class Algorithm(NamedTuple):
    """What cuSPARSELt has in the place of tiles."""

    number: int


# Numbers beyond those it has are refused, and left out.
ALGORITHMS = tuple(Algorithm(number) for number in range(6))


class Unavailable(Exception):
    """A mode cannot run here, and why."""


Inputs = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Mode:
    """One way to compute a product.

    Attributes:
        run: computes it with the copy and the activation of a call's number.
        expected: what it has to be for activation number i, float32.
        bytes_read: bytes of the weight that one call has to read.
        tiles: what to try, the default first; None where there is nothing to choose.
    """

    run: Callable[[int, Any], torch.Tensor]
    expected: Callable[[int], torch.Tensor]
    bytes_read: int
    tiles: Sequence[Any] = (None,)


Make = Callable[[Weights, Inputs], Mode]


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.float() @ weight.float().t()


def _cublas(form: str, weights: Weights, xs: Inputs) -> Mode:
    copies = getattr(weights, form)
    views = [w.t() for w in copies] if form == "k_major" else copies
    return Mode(
        lambda i, _: linear(xs[i % len(xs)], views[i % len(views)]),
        lambda i: _product(xs[i], weights.dense),
        weights.dense.nbytes,
    )


def _masked(text: str, x: torch.Tensor) -> torch.Tensor:
    return sparsify_reference(x, parse_pattern(text), DEFAULT_CRITERION)


def _row_bytes(weights: Weights) -> int:
    return weights.dense[:, 0].nbytes


def _read_rows(sparse: Iterator[torch.Tensor], weights: Weights) -> int:
    """Return bytes of the rows that the tokens of a step keep together, mean of all."""
    found = [int((x != 0).any(dim=0).sum()) for x in sparse]
    return sum(found) * _row_bytes(weights) // len(found)


def _sms(weights: Weights) -> int:
    device = weights.dense.device
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _lists(text: str, weights: Weights, xs: Inputs, *, shared: bool = False) -> Mode:
    """Lists of the kept channels, of each token or of all, and then their rows."""
    if shared and len(xs[0]) == 1:
        raise Unavailable("one token has nothing to share")
    turns = weights.k_major
    tokens, channels = xs[0].shape
    pattern = parse_pattern(text)
    kept, group = pattern.group(channels)
    listed = channels // group * kept

    def run(i: int, tiles: Any) -> torch.Tensor:
        lists = list_tokens(xs[i % len(xs)], kept=kept, group=group, shared=shared)
        return gather_lists(lists, turns[i % len(turns)], tiles=tiles)

    def sparse(i: int) -> torch.Tensor:
        if not shared:
            return _masked(text, xs[i])
        keep = select_keep(shared_scores(xs[i]), pattern, signed=False)
        return torch.where(keep, xs[i], 0)

    read = listed * _row_bytes(weights)
    if not shared:
        read = _read_rows((sparse(i) for i in range(len(xs))), weights)
    size = (tokens, listed, len(weights.dense), weights.dense.element_size())
    tiles = gather_tiles.candidates(*size, _sms(weights), shared=shared)
    return Mode(run, lambda i: _product(sparse(i), weights.dense), read, tiles)


def _selection(text: str, weights: Weights, xs: Inputs) -> Mode:
    """The lists alone: no weight is read."""
    kept, group = parse_pattern(text).group(xs[0].shape[1])
    listed = xs[0].shape[1] // group * kept

    def run(i: int, _: Any) -> torch.Tensor:
        return list_tokens(xs[i % len(xs)], kept=kept, group=group).values[:, :listed]

    def expected(i: int) -> torch.Tensor:
        x = _masked(text, xs[i])
        return x[x != 0].view(len(x), -1).float()

    return Mode(run, expected, 0)


def _packed_tiles(tokens: int, weights: Weights) -> list[PackedTiles]:
    """Return the default of the packed kernels, then others around it."""
    first = default_tiles(tokens, *weights.dense.shape, _sms(weights))
    rows = (1, 2, 4, 8, 16) if tokens == 1 else (16, 32, 64)
    spans = (128, 256, 512, 1024, 2048)
    found = [
        PackedTiles(block_o, block_k, warps)
        for block_o in rows
        for block_k in spans
        for warps in (4, 8)
        if 256 * warps <= block_o * block_k <= 1024 * warps
    ]
    return [first, *(tiles for tiles in found if tiles != first)]


def _packed(form: str, weights: Weights, xs: Inputs) -> Mode:
    """A pruned weight: rows of any length, or exactly two values of every four."""
    tokens = len(xs[0])
    if form == "packed":
        product, turns, dense = packed_linear_triton, weights.packed, weights.half
    else:
        product, turns = group_packed_linear_triton, weights.group_packed
        dense = weights.two_of_four
    return Mode(
        lambda i, tiles: product(
            xs[i % len(xs)], turns[i % len(turns)], None, tiles=tiles
        ),
        lambda i: _product(xs[i], dense),
        turns[0].nbytes,
        _packed_tiles(tokens, weights),
    )


def _peer(weights: Weights, xs: Inputs) -> Mode:
    """Half of the channels, by a threshold that was found before."""
    turns = weights.k_major
    sizes = torch.stack([x.float().abs() for x in xs])
    threshold = float(sizes.median())
    sparse = [torch.where(x.float().abs() > threshold, x, 0) for x in xs]
    return Mode(
        lambda i, tiles: peer.masked_rows(
            xs[i % len(xs)], turns[i % len(turns)], threshold, tiles
        ),
        lambda i: _product(sparse[i], weights.dense),
        _read_rows(iter(sparse), weights),
        peer.candidates(),
    )


def _sparse_tensor_cores(sparse: str, weights: Weights, xs: Inputs) -> Mode:
    """2:4 products by cuSPARSELt, of weights or of activations."""
    dense = weights.dense
    reason = cslt.refusal(dense.device, dense.dtype, tuple(dense.shape), sparse=sparse)
    if reason is not None:
        raise Unavailable(reason)
    if sparse == "weight":
        return _sparse_weights(weights, xs)
    turns = weights.o_major

    def run(i: int, tiles: Algorithm) -> torch.Tensor:
        masked = mask_tokens(xs[i % len(xs)], kept=2, group=4).values
        return cslt.semi_structured_activation_linear(
            masked, turns[i % len(turns)], algorithm=tiles.number
        )

    return Mode(
        run,
        lambda i: _product(_masked("2:4", xs[i]), dense),
        dense.nbytes,
        ALGORITHMS,
    )


def _sparse_weights(weights: Weights, xs: Inputs) -> Mode:
    turns = weights.semi_structured

    def run(i: int, tiles: Algorithm) -> torch.Tensor:
        weight = replace(turns[i % len(turns)], algorithm=tiles.number)
        return cslt.semi_structured_linear(xs[i % len(xs)], weight)

    return Mode(
        run,
        lambda i: _product(xs[i], weights.two_of_four),
        turns[0].nbytes,
        ALGORITHMS,
    )


def _mask(text: str, weights: Weights, xs: Inputs) -> Mode:
    """The activation with zeros: what a product of dense form needs before it."""
    kept, group = parse_pattern(text).group(xs[0].shape[1])
    return Mode(
        lambda i, _: mask_tokens(xs[i % len(xs)], kept=kept, group=group).values,
        lambda i: _masked(text, xs[i]).float(),
        0,
    )


# For any number of tokens, for a few, and for prompts.
ALWAYS: dict[str, Make] = {
    STOCK: partial(_cublas, "o_major"),
    CONTROL: partial(_cublas, "o_major"),
    "cublas k-major": partial(_cublas, "k_major"),
    "2:4 weights, cuSPARSELt": partial(_sparse_tensor_cores, "weight"),
}
FEW_TOKENS: dict[str, Make] = {
    "8:16": partial(_lists, "8:16"),
    "4:16": partial(_lists, "4:16"),
    "2:4": partial(_lists, "2:4"),
    "8:16 shared": partial(_lists, "8:16", shared=True),
    "4:16 shared": partial(_lists, "4:16", shared=True),
    "sparsify": partial(_selection, "8:16"),
    "packed 50%": partial(_packed, "packed"),
    "packed 2:4": partial(_packed, "group_packed"),
    "peer 50%": _peer,
}
PROMPTS: dict[str, Make] = {
    "2:4 activations, cuSPARSELt": partial(_sparse_tensor_cores, "activation"),
    "mask 2:4": partial(_mask, "2:4"),
}
MODES = ALWAYS | FEW_TOKENS | PROMPTS


def inputs(tokens: int, weights: Weights) -> Inputs:
    """Return random activations ``[T, K]``; tokens are independent of each other."""
    dense = weights.dense
    size = (tokens, dense.shape[1])
    return [
        torch.randn(size, dtype=dense.dtype, device=dense.device) for _ in range(INPUTS)
    ]


def modes_of(tokens: int, asked: Sequence[str] | None) -> list[str]:
    """Return the modes for a number of tokens, ``cublas`` always among them.

    Raises:
        SystemExit: for a mode that is unknown.
    """
    for name in asked or ():
        if name not in MODES:
            raise SystemExit(f"mode {name!r} is unknown. Expected {', '.join(MODES)}.")
    fit = ALWAYS | (FEW_TOKENS if tokens <= MAX_TOKENS else PROMPTS)
    return [name for name in fit if name == STOCK or not asked or name in asked]
