"""The ops vLLM's graphs see: ``sparsify_tokens`` and ``linear_tokens``.

``treatment/ops.py`` has two more, for layers with a criterion or mitigations.

One opaque op per sparse linear: ``torch.ops.vllm_sparse.sparsify_tokens`` before vLLM's
product, with CPU and CUDA implementations, or ``linear_tokens`` instead of it, where a
layer owns its weight. Both have a fake, so they work in eager mode, under
``torch.compile`` and in CUDA graphs. What depends on data (which tokens are sparsified)
is decided inside, from device tensors.

Our own library namespace: nothing is added to vLLM's.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch

from nmsparse.ops.sparsify import sparsify
from nmsparse.pattern import NMPattern
from vllm_sparse.phases import ALL, selected_tokens

if TYPE_CHECKING:
    from vllm_sparse.cpu.linear import CpuLinear
    from vllm_sparse.owned import OwnedLinear

# Kept alive for the life of the process: a Library unregisters its ops when collected.
_LIBRARY = torch.library.Library("vllm_sparse", "FRAGMENT")
_LIBRARY.define(
    "sparsify_tokens(Tensor x, Tensor codes, Tensor(a!) counters, "
    "int kept, int group, int phase, str criterion) -> Tensor"
)

_LIBRARY.define(
    "linear_tokens(Tensor x, Tensor? bias, Tensor key, Tensor(a!) counters, "
    "int outputs) -> Tensor"
)

ELEMENTS, NONZEROS = 0, 1

# What runs a layer that owns its weight, by the value of a tensor that the layer holds:
# compiled code may be loaded by another process, and may hand over a copy of a tensor.
# A key is never used again.
_KEYS = itertools.count()
_LINEARS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def codes_of(flat: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return the code of every row; more rows than a step has are no tokens of it."""
    rows = flat.shape[0]
    return codes[:rows] if rows <= len(codes) else codes.new_zeros(rows)


def _sparsify_tokens_cpu(
    x: torch.Tensor,
    codes: torch.Tensor,
    counters: torch.Tensor,
    kept: int,
    group: int,
    phase: int,
    criterion: str,
) -> torch.Tensor:
    """Sparsify the selected tokens only; see :func:`sparsify_tokens`."""
    # Contiguous, so that the result has the strides the fake promises.
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    codes = codes_of(flat, codes)
    pattern = NMPattern(kept, group)
    # Real tokens that are sparsified; with phase both, padding is as well, uncounted.
    selected = selected_tokens(codes, phase)
    hits = int(selected.count_nonzero())
    if hits == len(flat):
        out = counted = sparsify(flat, pattern, criterion=criterion)
    elif phase == ALL:
        out = sparsify(flat, pattern, criterion=criterion)
        counted = out[selected]
    else:
        # An op must not return its input, so untouched tokens are copied.
        out = flat.clone()
        if not hits:
            return out.view(x.shape)
        counted = sparsify(flat[selected], pattern, criterion=criterion)
        out[selected] = counted
    # Through numpy: two tensor increments would cost as much as the selection.
    counts = counters.numpy()
    counts[ELEMENTS] += counted.numel()
    counts[NONZEROS] += int(counted.count_nonzero())
    return out.view(x.shape)


def _sparsify_tokens_cuda(
    x: torch.Tensor,
    codes: torch.Tensor,
    counters: torch.Tensor,
    kept: int,
    group: int,
    phase: int,
    criterion: str,
) -> torch.Tensor:
    """Fixed shapes and no host synchronisation; see :func:`sparsify_tokens`."""
    # Contiguous, so that the result has the strides the fake promises.
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    codes = codes_of(flat, codes)
    sparse = sparsify(flat, NMPattern(kept, group), criterion=criterion)
    real = selected_tokens(codes, phase)
    out = sparse if phase == ALL else torch.where(real[:, None], sparse, flat)
    nonzeros = ((sparse != 0) & real[:, None]).sum()
    counters += torch.stack((real.sum() * flat.shape[1], nonzeros))
    return out.view(x.shape)


def _sparsify_tokens_fake(
    x: torch.Tensor,
    codes: torch.Tensor,
    counters: torch.Tensor,
    kept: int,
    group: int,
    phase: int,
    criterion: str,
) -> torch.Tensor:
    return x.new_empty(x.shape)


def _linear_tokens_cpu(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    key: torch.Tensor,
    counters: torch.Tensor,
    outputs: int,
) -> torch.Tensor:
    linear: CpuLinear = find_linear(key)
    if x.dim() == 2:
        return linear.run(x, bias, counters)
    flat = linear.run(x.reshape(-1, x.shape[-1]), bias, counters)
    return flat.view(*x.shape[:-1], outputs)


def _linear_tokens_fake(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    key: torch.Tensor,
    counters: torch.Tensor,
    outputs: int,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


_LIBRARY.impl("sparsify_tokens", _sparsify_tokens_cpu, "CPU")
_LIBRARY.impl("linear_tokens", _linear_tokens_cpu, "CPU")
torch.library.register_fake(
    "vllm_sparse::linear_tokens", _linear_tokens_fake, lib=_LIBRARY
)
_LIBRARY.impl("sparsify_tokens", _sparsify_tokens_cuda, "CUDA")
torch.library.register_fake(
    "vllm_sparse::sparsify_tokens", _sparsify_tokens_fake, lib=_LIBRARY
)


def sparsify_tokens(
    x: torch.Tensor,
    codes: torch.Tensor,
    counters: torch.Tensor,
    *,
    kept: int,
    group: int,
    phase: int,
    criterion: str,
) -> torch.Tensor:
    """Sparsify the tokens of one phase and count what was kept.

    Args:
        x: ``[..., K]`` activation, float16, bfloat16 or float32; not modified.
        codes: ``[max_tokens]`` uint8 phase of every token (``TokenPhases.codes``).
        counters: ``[2]`` int64, updated in place: elements and non-zeros of the real
            tokens that were sparsified.
        kept: N of the pattern.
        group: M of the pattern; K for unstructured selection.
        phase: codes of the tokens to sparsify; 0 for all.
        criterion: name of the score.

    Returns:
        ``x`` with the dropped channels of the selected tokens set to zero.
    """
    result: torch.Tensor = torch.ops.vllm_sparse.sparsify_tokens(
        x, codes, counters, kept, group, phase, criterion
    )
    return result


def register_linear(linear: OwnedLinear) -> torch.Tensor:
    """Let an op find what runs a layer; it is forgotten when the layer is.

    Returns:
        The key it is found by: ``[1]`` int64, on the host on all devices.
    """
    number = next(_KEYS)
    _LINEARS[number] = linear
    return torch.tensor([number], device="cpu")


def find_linear(key: torch.Tensor) -> Any:
    """Return what :func:`register_linear` was given."""
    return _LINEARS[int(key.item())]


def linear_tokens(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    key: torch.Tensor,
    counters: torch.Tensor,
    outputs: int,
) -> torch.Tensor:
    """Run a layer that owns its weight: sparsify if the step says so, and multiply.

    Args:
        x: ``[..., K]`` activation; not modified.
        bias: ``[O]`` or None.
        key: what :func:`register_linear` returned.
        counters: ``[2]`` int64, updated in place: elements and non-zeros of the real
            tokens that were sparsified.
        outputs: O of this rank.

    Returns:
        ``[..., O]`` in the dtype of ``x``.
    """
    if not torch.compiler.is_compiling():
        # Nothing is traced: the dispatcher would only cost microseconds a layer.
        return _linear_tokens_cpu(x, bias, key, counters, outputs)
    result: torch.Tensor = torch.ops.vllm_sparse.linear_tokens(
        x, bias, key, counters, outputs
    )
    return result
