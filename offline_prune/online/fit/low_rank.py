"""R-Sparse: a matrix of rank r for what was dropped, by a singular value decomposition.

R-Sparse (arXiv 2504.19449) and the initialiser of arXiv 2509.22166 decompose W. Our
formulation: the best rank under the second moment C of the dropped inputs ``q = u - v``
(tokens weighted), so that the rank goes where dropped inputs are::

    minimise  sum_t w_t |D (M - A B) q_t|^2      C = sum_t w_t q_t q_t^T

M is W if the dense output lacks ``W q`` alone. If VAR or LS changed the kept part, or
the target is the dense stream, M is the regression on q of what is really missing::

    M = W + sum_t w_t (left_t - W q_t) q_t^T (C + ridge * mean(diag C))^-1

D is the root of the output energies, if there are any. With the r leading left singular
vectors U of ``D M C^(1/2)``, ``A B = D^-1 U U^T D M``; singular values are shared
evenly. At full rank A B gives back all of ``M q``.
"""

from __future__ import annotations

import torch

from nmsparse.ops.online import Online
from offline_prune.online.fit.evidence import Evidence
from offline_prune.online.fit.options import FitOptions

_TINY = 1e-12


def fit(
    evidence: Evidence, online: Online, *, options: FitOptions
) -> dict[str, torch.Tensor]:
    """Return ``low_rank_in`` ``[r, K]`` and ``low_rank_out`` ``[O, r]``.

    Both are in the dtype of the weight; r is at most K and O.

    Args:
        evidence: the layer.
        online: what it has so far; its low rank is neutral.
        options: ``rank`` and ``ridge``.
    """
    weight = evidence.weight.double()
    exact = (
        not online.variance and "ls" not in online.mitigation and evidence.same_input()
    )
    moment, missing = _moments(evidence, online, cross=not exact)
    matrix = weight
    if missing is not None and moment.diagonal().sum() > 0:
        ridge = max(options.ridge, _TINY) * moment.diagonal().mean()
        damped = moment + ridge * torch.eye(len(moment)).to(moment)
        matrix = weight + torch.linalg.solve(damped, missing.T).T
    energy = evidence.output_energy
    outer, inner = decompose(matrix, moment, rank=options.rank, energy=energy)
    dtype = evidence.weight.dtype
    return {
        "low_rank_in": inner.to(dtype).contiguous(),
        "low_rank_out": outer.to(dtype).contiguous(),
    }


def decompose(
    matrix: torch.Tensor,
    moment: torch.Tensor,
    *,
    rank: int,
    energy: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A ``[O, r]`` and B ``[r, K]``, the best of that rank, float64.

    Args:
        matrix: M, float64 ``[O, K]``.
        moment: C, float64 ``[K, K]``, symmetric and not negative.
        rank: r, cut to the smaller side of M.
        energy: ``[O]``, positive: weight of the squared error of each output.
    """
    outputs, inputs = matrix.shape
    rank = min(rank, outputs, inputs)
    root = matrix.new_ones(outputs) if energy is None else _root(energy.to(matrix))
    scaled = matrix * root[:, None]
    if outputs <= inputs:
        values, vectors = torch.linalg.eigh(scaled @ moment @ scaled.T)
        # Ascending: the last are the largest.
        sizes, left = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
    else:
        # The smaller problem: right singular vectors, from which the left follow.
        spread, basis = torch.linalg.eigh(moment)
        image = scaled @ (basis * spread.clamp(min=0).sqrt())
        values, vectors = torch.linalg.eigh(image.T @ image)
        sizes, right = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
        left = image @ right / sizes.clamp(min=torch.finfo(sizes.dtype).tiny).sqrt()
    singular = sizes.clamp(min=0).sqrt()
    # Directions that no dropped input reaches: noise, whatever is put there.
    there = singular > singular[0] * 1e-7
    half = torch.where(there, singular, 1).sqrt()
    outer = torch.where(there, left * half, 0) / root[:, None]
    inner = torch.where(there[:, None], (left.T @ scaled) / half[:, None], 0)
    return outer, inner


def _root(energy: torch.Tensor) -> torch.Tensor:
    """Return the root of energies relative to their mean; an output of none counts."""
    relative = energy / energy.mean() if energy.mean() > 0 else torch.ones_like(energy)
    return relative.clamp(min=1e-6).sqrt()


def _moments(
    evidence: Evidence, online: Online, *, cross: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return C, and ``sum_t w_t (left_t - W q_t) q_t^T`` if it is asked for."""
    weight = evidence.weight.float()
    moment = weight.new_zeros(weight.shape[1], weight.shape[1]).double()
    missing = torch.zeros_like(weight).double() if cross else None
    for seen in evidence.seen(online):
        assert seen.dropped is not None
        used = seen.weights > 0
        dropped = seen.dropped[used]
        weighted = dropped * seen.weights[used][:, None]
        moment += dropped.T @ weighted
        if missing is not None:
            beyond = seen.left[used] - dropped @ weight.T
            missing += beyond.T @ weighted
    return moment, missing
