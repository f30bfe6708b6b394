"""What ``kernel_speed.py`` times: one product, by vLLM, by torch and by our kernels.

Our kernels are called as a layer calls them: the selection is part of every sparse
mode, and no list is prepared. Every call takes the next of several copies of the
weight, so that no weight is found in a cache.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import vllm._C  # noqa: F401  registers vLLM's ops with torch
from vllm import _custom_ops as vllm_ops

from nmsparse import NMPattern, PackedWeight, k_major, parse_pattern
from nmsparse.native.memory import streamed_empty
from nmsparse.ops.linear.cpu import linear_cpu, stream_k_major
from nmsparse.ops.packed.cpu import packed_linear_cpu, stream_o_major
from nmsparse.ops.sparsify import CompactActivation
from nmsparse.ops.sparsify.cpu import compact_cpu

# Most tokens that share one walk over the rows of their union (csrc/gather.h).
WALK_TOKENS = 16
# How many activations take turns: real tokens differ from each other.
INPUTS = 4

Item = TypeVar("Item")


class Shape(NamedTuple):
    """A layer of ``[O, K]``."""

    name: str
    in_features: int
    out_features: int

    @property
    def is_head(self) -> bool:
        """No pattern reaches an ``lm_head``: neither N:M nor packing."""
        return "lm_head" in self.name


class Turns(Generic[Item]):
    """Items that take turns: ``take`` gives the one that was used longest ago."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.items = list(items)
        self._cycle: Iterator[Item] = itertools.cycle(self.items)

    def take(self) -> Item:
        """Return the next item."""
        return next(self._cycle)


class Weights:
    """One random weight in every form that some mode reads; a form is made when asked.

    Args:
        shape: O and K.
        dtype: float32, bfloat16 or float16.
        total_bytes: the copies of a form have at least this many bytes together.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        size = (shape.out_features, shape.in_features)
        self.is_head = shape.is_head
        self.dense = torch.randn(size, dtype=dtype) * 0.02
        self._packed: dict[float, Turns[PackedWeight]] = {}

    def _copies(self, make: Callable[[], Item], nbytes: int) -> Turns[Item]:
        count = max(1, math.ceil(self.total_bytes / nbytes))
        return Turns(make() for _ in range(count))

    @cached_property
    def stock(self) -> Turns[Any]:
        """What vLLM makes of a weight that is not quantized, on a CPU without AMX."""
        make = partial(vllm_ops.create_onednn_mm, self.dense.t(), 32)
        return self._copies(make, self.dense.nbytes)

    @cached_property
    def o_major(self) -> Turns[torch.Tensor]:
        """``[O, K]``; a head's weight stays where vLLM loaded it."""
        copy = torch.clone if self.is_head else _streamed
        return self._copies(partial(copy, self.dense), self.dense.nbytes)

    @cached_property
    def k_major(self) -> Turns[torch.Tensor]:
        """``[K, O]``."""
        return self._copies(lambda: k_major(self.dense), self.dense.nbytes)

    def pruned(self, sparsity: float) -> torch.Tensor:
        """Return the weight without its smallest elements."""
        sizes = self.dense.abs()
        step = max(1, sizes.numel() // 1_000_000)  # torch's quantile has a limit
        limit = sizes.flatten()[::step].float().quantile(sparsity)
        return torch.where(sizes > limit, self.dense, 0)

    def packed(self, sparsity: float) -> Turns[PackedWeight]:
        """Return copies of the pruned weight, packed."""
        if sparsity not in self._packed:
            once = PackedWeight.pack(self.pruned(sparsity))

            def copy() -> PackedWeight:
                bits, values = _streamed(once.bits), _streamed(once.values)
                return dataclasses.replace(once, bits=bits, values=values)

            self._packed[sparsity] = self._copies(copy, once.nbytes)
        return self._packed[sparsity]


@dataclasses.dataclass(frozen=True)
class Mode:
    """One way to compute a product.

    Attributes:
        run: computes it once, with the next copy of the weight.
        bytes_read: bytes of the weight that one call reads, mean over the inputs.
        copies: how many copies take turns.
    """

    run: Callable[[], Any]
    bytes_read: int
    copies: int


Inputs = Turns[torch.Tensor]
Make = Callable[[Weights, Inputs], Mode]


def _stock(weights: Weights, xs: Inputs) -> Mode:
    turns = weights.stock
    return Mode(
        lambda: vllm_ops.onednn_mm(turns.take(), xs.take(), None),
        weights.dense.nbytes,
        len(turns.items),
    )


def _dense(
    function: Callable[..., Any], form: str, weights: Weights, xs: Inputs
) -> Mode:
    turns = getattr(weights, form)
    return Mode(
        lambda: function(xs.take(), turns.take(), None),
        weights.dense.nbytes,
        len(turns.items),
    )


def _packed(sparsity: float, weights: Weights, xs: Inputs) -> Mode:
    turns = weights.packed(sparsity)
    return Mode(
        lambda: packed_linear_cpu(xs.take(), turns.take(), None),
        turns.items[0].nbytes,
        len(turns.items),
    )


def _masks(text: str, weights: Weights, xs: Inputs, *, per_token: bool = False) -> Mode:
    """Every token has its own list of channels."""
    pattern, turns = parse_pattern(text), weights.k_major

    def run() -> torch.Tensor:
        sparse = compact_cpu(xs.take(), pattern, "magnitude")
        return linear_cpu(sparse, turns.take(), None, per_token=per_token)

    walk = 1 if per_token else WALK_TOKENS
    rows = [
        len(indices.unique())
        for x in xs.items
        for indices in compact_cpu(x, pattern, "magnitude").indices.split(walk)
    ]
    row_bytes = weights.dense[:, 0].nbytes
    return Mode(run, sum(rows) * row_bytes // len(xs.items), len(turns.items))


def _shared(text: str, weights: Weights, xs: Inputs) -> Mode:
    """All tokens use the list of the first."""
    pattern, turns = parse_pattern(text), weights.k_major
    assert isinstance(pattern, NMPattern)

    def run() -> torch.Tensor:
        x = xs.take()
        tokens, channels = x.shape
        only = compact_cpu(x[:1], pattern, "magnitude").indices
        values = x.index_select(1, only[0])
        sparse = CompactActivation(values, only.expand(tokens, -1), channels)
        return linear_cpu(sparse, turns.take(), None)

    tokens, channels = xs.items[0].shape
    rows = channels // pattern.m * pattern.n * math.ceil(tokens / WALK_TOKENS)
    return Mode(run, rows * weights.dense[:, 0].nbytes, len(turns.items))


def _selection(text: str, weights: Weights, xs: Inputs) -> Mode:
    pattern = parse_pattern(text)
    run = partial(compact_cpu, pattern=pattern, criterion="magnitude")
    return Mode(lambda: run(xs.take()), 0, 1)


STOCK = "stock"
MODES: dict[str, Make] = {
    STOCK: _stock,
    "stock again": _stock,
    "torch": partial(_dense, torch.nn.functional.linear, "o_major"),
    "8:16": partial(_masks, "8:16"),
    "4:16": partial(_masks, "4:16"),
    "2:4": partial(_masks, "2:4"),
    "8:16 per token lists": partial(_masks, "8:16", per_token=True),
    "8:16 shared": partial(_shared, "8:16"),
    "stream k-major": partial(_dense, stream_k_major, "k_major"),
    "stream o-major": partial(_dense, stream_o_major, "o_major"),
    "packed 50%": partial(_packed, 0.5),
    "packed 70%": partial(_packed, 0.7),
    "sparsify": partial(_selection, "8:16"),
}
# No pattern reaches a head: its inputs stay dense, and it is not packed.
HEAD_MODES = (STOCK, "stock again", "torch", "stream o-major")


def inputs(tokens: int, weights: Weights) -> Inputs:
    """Return random activations ``[T, K]``; tokens are independent of each other."""
    channels, dtype = weights.dense.shape[1], weights.dense.dtype
    return Turns(torch.randn(tokens, channels, dtype=dtype) for _ in range(INPUTS))


def modes_of(shape: Shape, asked: Sequence[str]) -> list[str]:
    """Return the modes that make sense for a layer, ``stock`` always among them."""
    return [
        name
        for name in MODES
        if (name == STOCK or name in asked)
        and (not shape.is_head or name in HEAD_MODES)
    ]


def _streamed(tensor: torch.Tensor) -> torch.Tensor:
    return streamed_empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)
