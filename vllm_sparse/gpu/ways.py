"""The ways to run a step of a layer with sparse activations.

Everything happens on the device of the tensors, with shapes that depend on the number
of tokens alone, and without waiting for the device: legal in CUDA graph capture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from nmsparse.ops.online import Constants, Sparsified
from nmsparse.packed import PackedWeight
from nmsparse.parameters import Parameters
from vllm_sparse.gpu.choice import (
    DENSE,
    GATHER,
    MASKED_PACKED,
    PACKED,
    SHARED,
    Plan,
)
from vllm_sparse.phases import ALL, Masks
from vllm_sparse.treatment.ops import finish_rows


class Kernels(NamedTuple):
    """The kernels, which import Triton."""

    list_tokens: Callable[..., Any]
    mask_tokens: Callable[..., Any]
    gather_lists: Callable[..., torch.Tensor]
    packed_linear: Callable[..., torch.Tensor]


@lru_cache(maxsize=1)
def kernels() -> Kernels:
    """Import the kernels, at their first use: Triton is heavy."""
    from nmsparse.ops.linear.gather_triton import gather_lists
    from nmsparse.ops.packed.packed_triton import packed_linear_triton
    from nmsparse.ops.sparsify.lists_triton import list_tokens, mask_tokens

    return Kernels(list_tokens, mask_tokens, gather_lists, packed_linear_triton)


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a sparse product is made of, beside the tokens.

    Attributes:
        rows: ``[K, O]``, K-major; rows contiguous where lists are gathered.
        bias: ``[O]`` or None.
        kept: N of the pattern.
        group: M of the pattern.
        phase: codes of the tokens to sparsify, 0 for all.
        variance: whether products are scaled to the variance of the token.
        factor: ``[K]`` of the criterion, or None.
        channel_shift: ``[K]`` or None.
        output_scale: ``[O]`` or None.
        channel_groups: ``[K]`` int64 or None.
        row_sum: ``[O]``: the mean of each token is subtracted; None for no shift.
        constant: ``[O]`` or None.
        packed: a packed copy of the weight, or None.
    """

    rows: torch.Tensor
    bias: torch.Tensor | None
    kept: int
    group: int
    phase: int
    variance: bool = False
    factor: torch.Tensor | None = None
    channel_shift: torch.Tensor | None = None
    output_scale: torch.Tensor | None = None
    channel_groups: torch.Tensor | None = None
    row_sum: torch.Tensor | None = None
    constant: torch.Tensor | None = None
    packed: PackedWeight | None = None


def run(
    x: torch.Tensor, plan: Plan, terms: Terms, masks: Masks, counters: torch.Tensor
) -> torch.Tensor:
    """Return ``[T, O]`` for contiguous ``x`` (``[T, K]``).

    Args:
        x: the tokens of a step, padding included.
        plan: how.
        terms: the layer.
        masks: which tokens are sparsified, for at least T tokens; rows beyond what they
            hold are no tokens of the step, and are sparsified with phase ``ALL`` alone.
        counters: ``[2]`` int64, updated in place: elements and non-zeros of the real
            tokens that were sparsified.
    """
    if plan.way in (DENSE, PACKED):
        return product(x, terms, plan)
    sparse = None if terms.phase == ALL else _first(masks.sparse, len(x))
    counted = _first(masks.counted, len(x))
    if plan.way in (GATHER, SHARED):
        return _gather(x, plan, terms, sparse, counted, counters)
    return _masked(x, plan, terms, sparse, counted, counters)


def product(x: torch.Tensor, terms: Terms, plan: Plan) -> torch.Tensor:
    """Return the product of all channels: vLLM's own, or of the packed copy."""
    if plan.way in (PACKED, MASKED_PACKED):
        return kernels().packed_linear(x, terms.packed, terms.bias)
    return F.linear(x, terms.rows.t(), terms.bias)


def _first(mask: torch.Tensor, rows: int) -> torch.Tensor:
    return mask[:rows] if rows <= len(mask) else mask.new_zeros(rows)


def _select(
    function: Callable[..., Any],
    x: torch.Tensor,
    terms: Terms,
    sparse: torch.Tensor | None,
    counted: torch.Tensor,
    counters: torch.Tensor,
    **more: bool,
) -> Any:
    return function(
        x,
        kept=terms.kept,
        group=terms.group,
        factor=terms.factor,
        channel_shift=terms.channel_shift,
        statistic=terms.row_sum is not None,
        variance=terms.variance,
        channel_groups=terms.channel_groups,
        sparse=sparse,
        counters=counters,
        counted=counted,
        **more,
    )


def _gather(
    x: torch.Tensor,
    plan: Plan,
    terms: Terms,
    sparse: torch.Tensor | None,
    counted: torch.Tensor,
    counters: torch.Tensor,
) -> torch.Tensor:
    """Multiply the rows of kept channels alone."""
    shared = plan.way == SHARED
    lists = _select(
        kernels().list_tokens, x, terms, sparse, counted, counters, shared=shared
    )
    return kernels().gather_lists(
        lists,
        terms.rows,
        bias=terms.bias,
        row_sum=terms.row_sum,
        output_scale=terms.output_scale,
        constant=terms.constant,
        tiles=plan.tiles,
    )


def _masked(
    x: torch.Tensor,
    plan: Plan,
    terms: Terms,
    sparse: torch.Tensor | None,
    counted: torch.Tensor,
    counters: torch.Tensor,
) -> torch.Tensor:
    """Set dropped channels to zero, multiply by everything, and finish."""
    found = _select(kernels().mask_tokens, x, terms, sparse, counted, counters)
    y = product(found.values, terms, plan)
    given = Parameters(output_scale=terms.output_scale)
    constants = Constants(terms.row_sum, terms.constant)
    owed = (found.scale, given.output_scale, terms.row_sum, terms.constant)
    if all(term is None for term in owed):
        return y
    rows = Sparsified(found.values, found.scale, found.token_shift)
    done = finish_rows(y, terms.bias, rows, constants, given)
    return done if sparse is None else torch.where(sparse[:, None], done, y)
