"""The factor of an inverse Hessian that SparseGPT sweeps with (arXiv 2301.00774).

``U`` is upper triangular with ``H^-1 = U^T U``; ``U_ii^2`` is the i-th diagonal entry
of the inverse of H restricted to the inputs from i on. The official code inverts H by
its Cholesky factor and factors the inverse again, which fails in float32 where H is
badly conditioned. Here ``H = R R^T`` with ``R`` upper triangular (the Cholesky factor
of H with its order reversed) and ``U = R^-1``: the same matrix, two thirds of the
work, and the inverse itself is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Below this a triangular solve is quicker than more products.
_LEAF = 256
_ATTEMPTS = 4


class SingularError(RuntimeError):
    """A Hessian that no damping makes positive definite."""


@dataclass(frozen=True, slots=True)
class InverseFactor:
    """``U`` of the damped Hessian.

    Attributes:
        upper: float32 ``[K, K]``, upper triangular.
        dead: bool ``[K]``, inputs that were always zero.
        percdamp: damping that made the Hessian positive definite.
    """

    upper: torch.Tensor
    dead: torch.Tensor
    percdamp: float


def inverse_factor(hessian: torch.Tensor, *, percdamp: float = 0.01) -> InverseFactor:
    """Damp a Hessian and return the upper Cholesky factor of its inverse.

    Dead inputs (zero on the diagonal) get the diagonal 1. Then ``percdamp`` times the
    mean diagonal is added; where that is too little, 10, 100 and 1000 times as much.

    Args:
        hessian: float32 ``[K, K]``, symmetric; unchanged.
        percdamp: damping as a share of the mean diagonal.

    Raises:
        ValueError: if the Hessian is not square or not finite.
        RuntimeError: if no damping makes it positive definite.
    """
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(
            f"Hessian: found shape {tuple(hessian.shape)}. Expected [K, K]."
        )
    invalid = hessian.numel() - int(hessian.isfinite().sum())
    if invalid:
        raise ValueError(
            f"Hessian: {invalid} of {hessian.numel()} values are not finite. Expected "
            "numbers: check the calibration inputs of the layer for NaN and infinity."
        )
    damped = hessian.float().flip(0, 1)
    diagonal = damped.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    plain, mean = diagonal.clone(), float(diagonal.mean())
    for attempt in range(_ATTEMPTS):
        damping = percdamp * 10**attempt
        diagonal.copy_(plain + damping * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            del damped, diagonal
            upper = lower.flip(0, 1).contiguous()
            del lower
            _invert_upper(upper)
            return InverseFactor(upper, dead.flip(0), damping)
    raise SingularError(
        f"Hessian of {len(hessian)} inputs is not positive definite, even with "
        f"damping {percdamp * 10 ** (_ATTEMPTS - 1):g}. Expected the Gram matrix of "
        "finite inputs: raise percdamp, or use the scorer wanda for this layer."
    )


def _invert_upper(upper: torch.Tensor) -> None:
    """Invert an upper triangular matrix ``[K, K]`` in place.

    By halves, ``[[A, B], [0, D]]^-1 = [[A^-1, -A^-1 B D^-1], [0, D^-1]]``: a solve
    with the identity would do three times the work of LAPACK's trtri, which torch
    does not offer.
    """
    size = len(upper)
    if size <= _LEAF:
        identity = torch.eye(size, dtype=upper.dtype, device=upper.device)
        upper.copy_(torch.linalg.solve_triangular(upper, identity, upper=True))
        return
    half = size // 2
    first, last = upper[:half, :half], upper[half:, half:]
    _invert_upper(first)
    _invert_upper(last)
    corner = upper[:half, half:]
    torch.matmul(first @ corner, last, out=corner).neg_()
