"""The epilogue: from the product of the kept part to the result, without the bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

if TYPE_CHECKING:
    import torch

    from nmsparse.ops.online.online import Online
    from nmsparse.ops.online.terms import Constants, Sparsified
    from nmsparse.parameters.layer import Parameters


def finish_online(
    product: torch.Tensor,
    sparsified: Sparsified,
    online: Online,
    constants: Constants,
) -> torch.Tensor:
    """Return ``[T, O]`` in the dtype of ``product``; see ``nmsparse.ops.online``.

    Args:
        product: ``[T, O]``, ``W v`` without bias.
        sparsified: what :func:`sparsify_online` returned for these tokens.
        online: how the layer is sparsified.
        constants: what the weight owes to the shifts.

    Raises:
        ValueError: if a constant that these tokens need is missing.
    """
    given = online.parameters
    if sparsified.token_shift is not None and constants.row_sum is None:
        raise ValueError(
            "finish_online: the tokens are shifted, but row_sum is missing. Expected "
            "it: make the constants with Constants.of(weight, online)."
        )
    if given.channel_shift is not None and constants.constant is None:
        raise ValueError(
            "finish_online: channels are shifted, but constant is missing. Expected "
            "it: make the constants with Constants.of(weight, online)."
        )
    y = product.float()
    if sparsified.scale is not None:
        y = y * sparsified.scale[:, None]
    if given.output_scale is not None:
        y = y * (1 + given.output_scale)
    if sparsified.token_shift is not None and constants.row_sum is not None:
        y = y + sparsified.token_shift[:, None] * constants.row_sum
    if constants.constant is not None:
        y = y + constants.constant
    if sparsified.residual is not None:
        y = y + low_rank(sparsified.residual, given).float()
    return y.to(product.dtype)


def low_rank(residual: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """Return ``low_rank_out (low_rank_in residual)``, ``[T, O]``, in their dtype."""
    first, second = parameters.low_rank_in, parameters.low_rank_out
    assert first is not None
    assert second is not None
    return F.linear(F.linear(residual.to(first.dtype), first), second)
