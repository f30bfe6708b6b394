"""Online sparsity of a linear layer: choose, multiply, and make good.

One token x, fused weight W, bias b or none; every part but the pattern is optional::

    u = x - channel_shift - e         e: mean or median of the token (D-PTS)
    v = u where kept, else 0          kept: the best N of every M by |u| * factor
    s = sqrt(var(u) / var(v))         VAR; 1 without it, or if either is 0
    y = s * (1 + output_scale) * (W v) + e * (W 1) + W channel_shift + output_shift
        + low_rank_out (low_rank_in (u - v)) + b

Shifts come back as row sums and a constant, so ``W v`` stays a sparse product.
``sparsify_online`` gives v, ``finish_online`` what follows ``W v`` but the bias;
``online_linear`` is all of it in pure torch. Statistics are those of the channels that
are given: of a shard, the shard's.

Arithmetic is in float32; v and u - v are rounded to the dtype of x. With N = M and no
learned parameters v is x, and the result exactly the dense one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.dispatch import Call, choose
from nmsparse.ops.online.finish import finish_online
from nmsparse.ops.online.online import Online, prepare
from nmsparse.ops.online.reference import sparsify_online_reference
from nmsparse.ops.online.terms import Constants, Sparsified

if TYPE_CHECKING:
    import torch

__all__ = [
    "Constants",
    "Online",
    "Sparsified",
    "finish_online",
    "online_linear",
    "prepare",
    "sparsify_online",
]


def sparsify_online(x: torch.Tensor, online: Online) -> Sparsified:
    """Choose the channels of each token and return the parts of the algebra.

    Args:
        x: ``[T, K]`` float16, bfloat16 or float32: the tokens that are sparsified in
            this step. Not modified.
        online: how; ``online.check`` passed, its tensors on the device of ``x``.

    Returns:
        What is kept, and what :func:`finish_online` needs.

    Raises:
        ValueError: if ``x`` is not two-dimensional, K is not a multiple of M, or the
            criterion's factor is missing.
        TypeError: for another dtype.
    """
    if x.dim() != 2:
        raise ValueError(
            f"sparsify_online: x has shape {tuple(x.shape)}. Expected [T, K]: flatten "
            "it first."
        )
    backend = choose(Call.of("online", x, online.pattern, online.criterion))
    result: Sparsified = backend(x, online)
    return result


def online_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    online: Online,
) -> torch.Tensor:
    """Return ``[T, O]`` in the dtype of ``x``: the oracle, in pure torch and float32.

    Args:
        x: ``[T, K]``, the tokens of one step, all of them sparsified.
        weight: ``[O, K]``, as Hugging Face stores it; all rows of a fused layer.
        bias: ``[O]`` or None.
        online: how; a factor that is made of the weight is computed if it is missing.

    Raises:
        ValueError: as :meth:`Online.check`, or if shapes disagree.
    """
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"online_linear: x has shape {tuple(x.shape)}, the weight "
            f"{tuple(weight.shape)}. Expected [T, K] and [O, K]."
        )
    online = prepare(weight, online)
    online.check(weight.shape[1], weight.shape[0])
    constants = Constants.of(weight, online)
    exact = Online(
        online.pattern,
        online.criterion,
        online.mitigation,
        online.parameters.to(x.device, dtype=weight.float().dtype),
    )
    found = sparsify_online_reference(x, exact)
    product = found.values.float() @ weight.float().t()
    y = finish_online(product, found, exact, constants)
    return (y if bias is None else y + bias.float()).to(x.dtype)
