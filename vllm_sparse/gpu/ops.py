"""``gather_tokens`` and ``packed_tokens``: layers that own their weight on a GPU.

One opaque op a layer instead of vLLM's product. The way a step runs is chosen inside,
from its number of tokens, so that compiled code does not bake it in; which of its
tokens are sparse comes from masks on the device. The dispatcher has no implementation
for CPU tensors: tests call the functions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from vllm.logger import init_logger

from vllm_sparse.custom_ops import find_linear
from vllm_sparse.gpu.choice import PACKED, Plan
from vllm_sparse.gpu.linear import GpuLinear
from vllm_sparse.gpu.ways import Terms, kernels, run
from vllm_sparse.phases import Masks

logger = init_logger("vllm." + __name__)

# Kept alive for the life of the process: a Library unregisters its ops when collected.
_LIBRARY = torch.library.Library("vllm_sparse", "FRAGMENT")
_LIBRARY.define(
    "gather_tokens(Tensor x, Tensor rows, Tensor? bias, Tensor key, Tensor sparse, "
    "Tensor counted, Tensor(a!) counters, Tensor? factor, Tensor? channel_shift, "
    "Tensor? output_scale, Tensor? channel_groups, Tensor? row_sum, Tensor? constant, "
    "int kept, int group, int phase, bool variance) -> Tensor"
)
_LIBRARY.define(
    "packed_tokens(Tensor x, Tensor weight, Tensor? bias, Tensor key) -> Tensor"
)


def gather_tokens_cuda(
    x: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    key: torch.Tensor,
    sparse: torch.Tensor,
    counted: torch.Tensor,
    counters: torch.Tensor,
    factor: torch.Tensor | None,
    channel_shift: torch.Tensor | None,
    output_scale: torch.Tensor | None,
    channel_groups: torch.Tensor | None,
    row_sum: torch.Tensor | None,
    constant: torch.Tensor | None,
    kept: int,
    group: int,
    phase: int,
    variance: bool,
) -> torch.Tensor:
    """Sparsify the tokens of one phase, and multiply.

    Args:
        x: ``[..., K]`` activation; not modified.
        rows: ``[K, O]``, the weight, K-major.
        bias: ``[O]`` or None.
        key: of the layer's :class:`GpuLinear`, on the host.
        sparse: ``[max_tokens]`` bool, tokens that are sparsified, and padding.
        counted: ``[max_tokens]`` bool, real tokens that are sparsified.
        counters: ``[2]`` int64, updated in place: elements and non-zeros of the real
            tokens that were sparsified. A step that runs dense counts none.
        factor: ``[K]`` of the criterion, or None.
        channel_shift: ``[K]`` or None.
        output_scale: ``[O]`` or None.
        channel_groups: ``[K]`` int64 or None.
        row_sum: ``[O]``: the mean of each token is subtracted; None for no shift.
        constant: ``[O]`` or None.
        kept: N of the pattern.
        group: M of the pattern.
        phase: codes of the tokens to sparsify, 0 for all.
        variance: whether products are scaled to the variance of the token.

    Returns:
        ``[..., O]`` in the dtype of ``x``.
    """
    # Contiguous, so that the result has the strides the fake promises.
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    linear: GpuLinear = find_linear(key)
    plan = linear.plan(len(flat))
    if rows.stride(1) != 1 or x.dtype != rows.dtype:
        # Somebody replaced the weight, or torch is to say what does not fit.
        logger.warning_once(
            "vllm-sparse: a layer has a weight or an input that our kernels do not "
            "take (%s %s, strides %s), so it runs %s.",
            rows.dtype,
            x.dtype,
            rows.stride(),
            linear.first,
        )
        plan = Plan(linear.first)
    if not len(flat):
        return x.new_empty(*x.shape[:-1], rows.shape[1])
    terms = Terms(
        rows,
        bias,
        kept,
        group,
        phase,
        variance,
        factor,
        channel_shift,
        output_scale,
        channel_groups,
        row_sum,
        constant,
        linear.weights.packed,
    )
    y = run(flat, plan, terms, Masks(sparse, counted), counters)
    return y.view(*x.shape[:-1], rows.shape[1])


def _gather_tokens_fake(
    x: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    key: torch.Tensor,
    sparse: torch.Tensor,
    counted: torch.Tensor,
    counters: torch.Tensor,
    factor: torch.Tensor | None,
    channel_shift: torch.Tensor | None,
    output_scale: torch.Tensor | None,
    channel_groups: torch.Tensor | None,
    row_sum: torch.Tensor | None,
    constant: torch.Tensor | None,
    kept: int,
    group: int,
    phase: int,
    variance: bool,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], rows.shape[1])


def packed_tokens_cuda(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    key: torch.Tensor,
) -> torch.Tensor:
    """Multiply dense tokens by a pruned weight: its packed copy at few tokens.

    Args:
        x: ``[..., K]``.
        weight: ``[O, K]``.
        bias: ``[O]`` or None.
        key: of the layer's :class:`GpuLinear`, on the host.

    Returns:
        ``[..., O]`` in the dtype of ``x``.
    """
    linear: GpuLinear = find_linear(key)
    tokens = x.numel() // max(1, x.shape[-1])
    packed = linear.weights.packed
    way = linear.plan(tokens).way
    if way != PACKED or packed is None or not tokens or x.dtype != packed.dtype:
        return F.linear(x, weight, bias)
    y = kernels().packed_linear(x.reshape(-1, x.shape[-1]), packed, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def _packed_tokens_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    key: torch.Tensor,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_LIBRARY.impl("gather_tokens", gather_tokens_cuda, "CUDA")
_LIBRARY.impl("packed_tokens", packed_tokens_cuda, "CUDA")
torch.library.register_fake(
    "vllm_sparse::gather_tokens", _gather_tokens_fake, lib=_LIBRARY
)
torch.library.register_fake(
    "vllm_sparse::packed_tokens", _packed_tokens_fake, lib=_LIBRARY
)
