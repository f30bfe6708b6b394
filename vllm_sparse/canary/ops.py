"""``tap_token``: copy one token of a step before and after a layer.

A fixed-size copy into tensors that the layer holds, so that it is legal in compiled
code and in CUDA graphs. Which token is a value on the device.
"""

from __future__ import annotations

import torch

# Kept alive for the life of the process: a Library unregisters its ops when collected.
_LIBRARY = torch.library.Library("vllm_sparse", "FRAGMENT")
_LIBRARY.define(
    "tap_token(Tensor x, Tensor y, Tensor row, Tensor(a!) before, Tensor(b!) after) "
    "-> ()"
)

# The row of a step that is not sampled.
NO_ROW = -1


def _tap_cpu(
    x: torch.Tensor,
    y: torch.Tensor,
    row: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
) -> None:
    """Copy nothing in a step that is not sampled."""
    number = int(row.item())
    if number == NO_ROW:
        return
    flat = x.reshape(-1, x.shape[-1])
    if not len(flat):
        return
    number = min(number, len(flat) - 1)
    before.copy_(flat[number : number + 1])
    after.copy_(y.reshape(-1, y.shape[-1])[number : number + 1])


def _tap_cuda(
    x: torch.Tensor,
    y: torch.Tensor,
    row: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
) -> None:
    """Copy at every step: a graph replays the same work. No host synchronisation."""
    flat = x.reshape(-1, x.shape[-1])
    if not len(flat):
        return
    # A layer may see fewer rows than the step has tokens.
    place = row.clamp(0, len(flat) - 1)
    before.copy_(flat.index_select(0, place))
    after.copy_(y.reshape(-1, y.shape[-1]).index_select(0, place))


def _tap_fake(
    x: torch.Tensor,
    y: torch.Tensor,
    row: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
) -> None:
    return None


_LIBRARY.impl("tap_token", _tap_cpu, "CPU")
_LIBRARY.impl("tap_token", _tap_cuda, "CUDA")
torch.library.register_fake("vllm_sparse::tap_token", _tap_fake, lib=_LIBRARY)


def tap_token(
    x: torch.Tensor,
    y: torch.Tensor,
    row: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
) -> None:
    """Copy one token's input and result.

    Args:
        x: ``[..., K]``, the input of a layer.
        y: ``[..., O]``, what it returned.
        row: ``[1]`` int64, which token; ``NO_ROW`` for none. A row beyond the last is
            the last.
        before: ``[1, K]``, written.
        after: ``[1, O]``, written.
    """
    if not torch.compiler.is_compiling() and x.is_cpu:
        # Nothing is traced: the dispatcher would only cost microseconds a layer.
        _tap_cpu(x, y, row, before, after)
        return
    torch.ops.vllm_sparse.tap_token(x, y, row, before, after)
