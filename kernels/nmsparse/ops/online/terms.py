"""What travels through the steps of online sparsity beside the product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nmsparse.ops.online.online import Online

_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Sparsified:
    """Tokens on their way to the product, in the algebra of ``nmsparse.ops.online``.

    Attributes:
        values: ``[T, K]`` in the dtype of x: the kept part v of the shifted tokens, in
            the order of the channels; zeros where a channel was dropped.
        scale: ``[T]`` float32 that the product is multiplied by; None for 1.
        token_shift: ``[T]`` float32 that was subtracted; None for 0.
        residual: ``[T, K]`` in the dtype of x: the dropped part; None if not needed.
    """

    values: torch.Tensor
    scale: torch.Tensor | None = None
    token_shift: torch.Tensor | None = None
    residual: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """What the weight owes to the shifts; once for a layer.

    Attributes:
        row_sum: ``[O]`` float32, ``W 1``; needed with a token shift (D-PTS).
        constant: ``[O]`` float32, ``W channel_shift + output_shift``; None for 0.
    """

    row_sum: torch.Tensor | None = None
    constant: torch.Tensor | None = None

    @classmethod
    def of(cls, weight: torch.Tensor, online: Online) -> Constants:
        """Return the constants of a dense weight (``[O, K]``), summed in float64."""
        shift = online.parameters.channel_shift
        vectors = [weight.new_ones(weight.shape[1]).double()]
        vectors += [] if shift is None else [shift.double()]
        columns = torch.stack(vectors, dim=1)
        # In pieces: a float64 copy of a whole weight would be four times its size.
        pieces = [part.double() @ columns for part in weight.split(_ROWS)]
        sums = torch.cat(pieces).float() if pieces else columns[:0].float()
        row_sum = None if online.statistic is None else sums[:, 0].contiguous()
        moved = None if shift is None else sums[:, 1].contiguous()
        return cls(row_sum, _sum(moved, online.parameters.output_shift))

    @classmethod
    def from_product(
        cls,
        product: Callable[[torch.Tensor], torch.Tensor],
        online: Online,
        *,
        like: torch.Tensor,
    ) -> Constants:
        """Return the constants of a layer that only its product knows.

        Args:
            product: ``[T, K]`` to ``[T, O]`` without bias, for example of a quantized
                layer.
            online: how the layer is sparsified.
            like: ``[..., K]`` of the dtype and device the product takes.
        """
        given = online.parameters
        shift = given.channel_shift
        ones = like.new_ones(1, like.shape[-1])
        moved = None if shift is None else product(shift.to(ones)[None])[0].float()
        row_sum = None if online.statistic is None else product(ones)[0].float()
        return cls(row_sum, _sum(moved, given.output_shift))


def _sum(
    first: torch.Tensor | None, second: torch.Tensor | None
) -> torch.Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
