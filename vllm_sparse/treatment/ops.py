"""Two more ops of vLLM's graphs: ``prepare_tokens`` and ``finish_tokens``.

They stand before and after vLLM's product of a layer with a treatment, as
``sparsify_tokens`` stands before that of a plain one. Tokens that are not sparsified
pass both unchanged, so their result is vLLM's dense one. Learned tensors are arguments,
so compiled code and CUDA graphs see them as inputs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from nmsparse.criteria import DEFAULT_CRITERION, criteria
from nmsparse.ops.online import (
    Constants,
    Online,
    Sparsified,
    finish_online,
    sparsify_online,
)
from nmsparse.parameters import Parameters
from nmsparse.pattern import NMPattern
from vllm_sparse.custom_ops import codes_of
from vllm_sparse.phases import selected_tokens

# Values [..., K]; then scale [T], shift of tokens [T] and residual [T, K], each empty
# if there is none: an op returns as many tensors at every call.
_Prepared = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_LIBRARY = torch.library.Library("vllm_sparse", "FRAGMENT")
_LIBRARY.define(
    "prepare_tokens(Tensor x, Tensor codes, Tensor(a!) counters, Tensor? factor, "
    "Tensor? channel_shift, Tensor? output_scale, Tensor? channel_groups, int kept, "
    "int group, int phase, str criterion, str mitigation) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "finish_tokens(Tensor product, Tensor? bias, Tensor codes, Tensor scale, "
    "Tensor token_shift, Tensor residual, Tensor? row_sum, Tensor? constant, "
    "Tensor? output_scale, Tensor? low_rank_in, Tensor? low_rank_out, int phase) "
    "-> Tensor"
)


@lru_cache(maxsize=256)
def _bare(kept: int, group: int, criterion: str, mitigation: str) -> Online:
    """Return what an op's arguments say, without tensors."""
    names = tuple(filter(None, mitigation.split(",")))
    return Online(NMPattern(kept, group), criterion, names)


def _prepare_cpu(
    x: torch.Tensor,
    codes: torch.Tensor,
    counters: torch.Tensor,
    factor: torch.Tensor | None,
    channel_shift: torch.Tensor | None,
    output_scale: torch.Tensor | None,
    channel_groups: torch.Tensor | None,
    kept: int,
    group: int,
    phase: int,
    criterion: str,
    mitigation: str,
) -> _Prepared:
    """Treat the selected tokens only; see the module."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    given = Parameters(
        factor=factor,
        channel_shift=channel_shift,
        output_scale=output_scale,
        channel_groups=channel_groups,
    )
    online = replace(_bare(kept, group, criterion, mitigation), parameters=given)
    chosen = selected_tokens(codes_of(flat, codes), phase)
    found = sparsify_online(flat[chosen], online)
    # Through numpy: two tensor increments would cost as much as the selection.
    counters.numpy()[:] += (
        found.values.numel(),
        int(found.values.count_nonzero()),
    )
    # An op must not return its input, so untouched tokens are copied.
    values = flat.clone()
    values[chosen] = found.values
    scale, token_shift, residual = _outputs(flat, online)
    if found.scale is not None:
        scale[chosen] = found.scale
    if found.token_shift is not None:
        token_shift[chosen] = found.token_shift
    if found.residual is not None:
        residual[chosen] = found.residual
    return values.view(x.shape), scale, token_shift, residual


def _prepare_cuda(
    x: torch.Tensor,
    codes: torch.Tensor,
    counters: torch.Tensor,
    factor: torch.Tensor | None,
    channel_shift: torch.Tensor | None,
    output_scale: torch.Tensor | None,
    channel_groups: torch.Tensor | None,
    kept: int,
    group: int,
    phase: int,
    criterion: str,
    mitigation: str,
) -> _Prepared:
    """Fixed shapes and no host synchronisation; all tokens are computed."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    given = Parameters(
        factor=factor,
        channel_shift=channel_shift,
        output_scale=output_scale,
        channel_groups=channel_groups,
    )
    online = replace(_bare(kept, group, criterion, mitigation), parameters=given)
    real = selected_tokens(codes_of(flat, codes), phase)
    if online.needs_batch:
        online = _with_step_factor(flat, real, online)
    found = sparsify_online(flat, online)
    values = torch.where(real[:, None], found.values, flat)
    nonzeros = ((found.values != 0) & real[:, None]).sum()
    counters += torch.stack((real.sum() * flat.shape[1], nonzeros))
    # What belongs to other tokens is not read.
    none = _outputs(flat[:0], online)
    return (
        values.view(x.shape),
        none[0] if found.scale is None else found.scale,
        none[1] if found.token_shift is None else found.token_shift,
        none[2] if found.residual is None else found.residual,
    )


def _with_step_factor(flat: torch.Tensor, real: torch.Tensor, online: Online) -> Online:
    """Return a rule with the factor of this step's tokens: others count as zeros."""
    static = replace(online, criterion=DEFAULT_CRITERION)
    shifted = static.correction(flat).shifted(flat)
    tokens = torch.where(real[:, None], flat if shifted is None else shifted, 0)
    factor = criteria.get(online.criterion).batch_factor(tokens)
    # The score is |u| times the factor, wherever that comes from.
    return replace(static, parameters=replace(online.parameters, factor=factor))


def _outputs(
    flat: torch.Tensor, online: Online
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what tokens have that are not treated."""
    tokens = flat.shape[0]
    return (
        flat.new_ones(tokens if online.variance else 0, dtype=torch.float32),
        flat.new_zeros(tokens if online.statistic else 0, dtype=torch.float32),
        flat.new_zeros(tokens if online.residual else 0, flat.shape[1]),
    )


def _prepare_fake(
    x: torch.Tensor,
    codes: torch.Tensor,
    counters: torch.Tensor,
    factor: torch.Tensor | None,
    channel_shift: torch.Tensor | None,
    output_scale: torch.Tensor | None,
    channel_groups: torch.Tensor | None,
    kept: int,
    group: int,
    phase: int,
    criterion: str,
    mitigation: str,
) -> _Prepared:
    online = replace(
        _bare(kept, group, criterion, mitigation),
        parameters=Parameters(output_scale=output_scale),
    )
    # Not reshape: it asks whether x is contiguous.
    flat = x.new_empty((x.numel() // x.shape[-1], x.shape[-1]))
    return (x.new_empty(x.shape), *_outputs(flat, online))


def finish_rows(
    product: torch.Tensor,
    bias: torch.Tensor | None,
    rows: Sparsified,
    constants: Constants,
    given: Parameters,
) -> torch.Tensor:
    """Return ``[T, O]`` of tokens that are all sparsified.

    vLLM adds the bias in its product, for the sake of dense tokens. Here it is taken
    out of what is scaled.

    Args:
        product: ``[T, O]``, ``W v`` and the bias.
        bias: ``[O]`` or None.
        rows: how the tokens were sparsified.
        constants: what the weight owes to shifts.
        given: learned tensors.
    """
    online = Online(NMPattern(1, 1), parameters=given)
    scaled = rows.scale is not None or given.output_scale is not None
    if bias is None or not scaled:
        return finish_online(product, rows, online, constants)
    exact = product.float() - bias.float()
    y = finish_online(exact, rows, online, constants) + bias.float()
    return y.to(product.dtype)


def _finish_cpu(
    product: torch.Tensor,
    bias: torch.Tensor | None,
    codes: torch.Tensor,
    scale: torch.Tensor,
    token_shift: torch.Tensor,
    residual: torch.Tensor,
    row_sum: torch.Tensor | None,
    constant: torch.Tensor | None,
    output_scale: torch.Tensor | None,
    low_rank_in: torch.Tensor | None,
    low_rank_out: torch.Tensor | None,
    phase: int,
) -> torch.Tensor:
    """Finish the selected tokens only."""
    flat = product.reshape(-1, product.shape[-1])
    chosen = selected_tokens(codes_of(flat, codes), phase)
    rows = Sparsified(
        flat[:0],
        scale[chosen] if scale.numel() else None,
        token_shift[chosen] if token_shift.numel() else None,
        residual[chosen] if residual.numel() else None,
    )
    given = Parameters(
        output_scale=output_scale, low_rank_in=low_rank_in, low_rank_out=low_rank_out
    )
    out = flat.clone()
    constants = Constants(row_sum, constant)
    out[chosen] = finish_rows(flat[chosen], bias, rows, constants, given)
    return out.view(product.shape)


def _finish_cuda(
    product: torch.Tensor,
    bias: torch.Tensor | None,
    codes: torch.Tensor,
    scale: torch.Tensor,
    token_shift: torch.Tensor,
    residual: torch.Tensor,
    row_sum: torch.Tensor | None,
    constant: torch.Tensor | None,
    output_scale: torch.Tensor | None,
    low_rank_in: torch.Tensor | None,
    low_rank_out: torch.Tensor | None,
    phase: int,
) -> torch.Tensor:
    """Fixed shapes and no host synchronisation."""
    flat = product.reshape(-1, product.shape[-1])
    real = selected_tokens(codes_of(flat, codes), phase)
    rows = Sparsified(
        flat[:0],
        scale if scale.numel() else None,
        token_shift if token_shift.numel() else None,
        residual if residual.numel() else None,
    )
    given = Parameters(
        output_scale=output_scale, low_rank_in=low_rank_in, low_rank_out=low_rank_out
    )
    done = finish_rows(flat, bias, rows, Constants(row_sum, constant), given)
    return torch.where(real[:, None], done, flat).view(product.shape)


def _finish_fake(
    product: torch.Tensor,
    bias: torch.Tensor | None,
    codes: torch.Tensor,
    scale: torch.Tensor,
    token_shift: torch.Tensor,
    residual: torch.Tensor,
    row_sum: torch.Tensor | None,
    constant: torch.Tensor | None,
    output_scale: torch.Tensor | None,
    low_rank_in: torch.Tensor | None,
    low_rank_out: torch.Tensor | None,
    phase: int,
) -> torch.Tensor:
    return product.new_empty(product.shape)


_LIBRARY.impl("prepare_tokens", _prepare_cpu, "CPU")
_LIBRARY.impl("prepare_tokens", _prepare_cuda, "CUDA")
_LIBRARY.impl("finish_tokens", _finish_cpu, "CPU")
_LIBRARY.impl("finish_tokens", _finish_cuda, "CUDA")
torch.library.register_fake("vllm_sparse::prepare_tokens", _prepare_fake, lib=_LIBRARY)
torch.library.register_fake("vllm_sparse::finish_tokens", _finish_fake, lib=_LIBRARY)
