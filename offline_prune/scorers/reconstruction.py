"""SparseGPT's sweep: remove weights column by column and update those to the right.

Frantar and Alistarh 2023, arXiv 2301.00774. For column i with the factor ``U`` of
:mod:`offline_prune.scorers.cholesky`: ``err = (w - q) / U_ii`` with q = w where the
weight stays and 0 elsewhere, then ``W[:, j] -= err * U_ij`` for the columns j > i, at
once inside the block and block by block behind it. ``sum err^2 / 2`` is the layer's
error under the damped Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from offline_prune.scorers.cholesky import InverseFactor, inverse_factor

# From the scores ``W_ij^2 / U_jj^2`` [O, C] of columns not yet swept, and the index of
# the first of them, to those that stay: bool [O, C].
Choose: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What a sweep made of a weight.

    Attributes:
        weight: float32 ``[O, K]``, zero where removed, updated elsewhere.
        keep: bool ``[O, K]``.
        loss: ``tr(D H D^T) / 2`` for the difference D and the damped Hessian H; inputs
            that are always zero are left out.
        note: set if more damping was necessary than asked for.
    """

    weight: torch.Tensor
    keep: torch.Tensor
    loss: float
    note: str | None = None


def reconstruct(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    keep: torch.Tensor,
    *,
    percdamp: float = 0.01,
    blocksize: int = 128,
) -> Reconstruction:
    """Remove given weights and update the others to make up for them.

    Args:
        weight: ``[O, K]``, any floating dtype.
        hessian: float32 ``[K, K]``, a multiple of the inputs' Gram matrix.
        keep: bool ``[O, K]``, True where the weight stays.
        percdamp: damping as a share of the Hessian's mean diagonal.
        blocksize: columns between two updates of all columns behind; speed only.

    Raises:
        ValueError: if the shapes do not fit or a value is not finite.
        RuntimeError: if the Hessian cannot be factored.
    """
    if keep.shape != weight.shape:
        raise ValueError(
            f"keep: found shape {tuple(keep.shape)}. Expected that of the weight, "
            f"{tuple(weight.shape)}."
        )

    def given(scores: torch.Tensor, start: int) -> torch.Tensor:
        return keep[:, start : start + scores.shape[1]]

    return sweep(
        weight, hessian, given, group=blocksize, percdamp=percdamp, blocksize=blocksize
    )


def sweep(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    choose: Choose,
    *,
    group: int,
    percdamp: float,
    blocksize: int,
) -> Reconstruction:
    """Sweep over the columns; weights are chosen ``group`` columns at a time.

    Args:
        weight: ``[O, K]``, any floating dtype.
        hessian: float32 ``[K, K]``.
        choose: what stays of the next ``group`` columns (fewer at the end of a block).
        group: columns chosen together, after all updates from the columns before.
        percdamp: damping as a share of the Hessian's mean diagonal.
        blocksize: columns of a block, a multiple of ``group``.

    Raises:
        ValueError: if the shapes do not fit or a value is not finite.
        RuntimeError: if the Hessian cannot be factored.
    """
    _check(weight, hessian)
    assert blocksize % group == 0
    factor = inverse_factor(hessian.to(weight.device), percdamp=percdamp)
    del hessian  # as large as the factor, and often ours alone
    work = weight.detach().float().clone()
    # Nothing depends on these, so they are the first to go and need no update.
    work[:, factor.dead] = 0.0
    keep = torch.empty_like(work, dtype=torch.bool)
    loss = 0.0
    for start in range(0, work.shape[1], blocksize):
        block = slice(start, start + blocksize)
        errors = _sweep_block(work, keep, block, factor, choose=choose, group=group)
        behind = slice(start + blocksize, None)
        work[:, behind].addmm_(errors.T, factor.upper[block, behind], alpha=-1)
        loss += float(errors.square().sum(dtype=torch.float64)) / 2
    # Those that stayed all the same keep their value: no input said otherwise.
    work[:, factor.dead] = weight.detach()[:, factor.dead].float()
    work.masked_fill_(~keep, 0.0)
    return Reconstruction(work, keep, loss, _note(factor, percdamp))


def _sweep_block(
    work: torch.Tensor,
    keep: torch.Tensor,
    block: slice,
    factor: InverseFactor,
    *,
    choose: Choose,
    group: int,
) -> torch.Tensor:
    """Sweep over the columns of a block, in place.

    Args:
        work: float32 ``[O, K]``, up to date in this block; its block is replaced.
        keep: bool ``[O, K]``, filled in this block.
        block: the columns, B of them.
        factor: of the inverse Hessian.
        choose: see :func:`sweep`.
        group: see :func:`sweep`.

    Returns:
        The errors, float32 ``[B, O]``.
    """
    # Columns as rows: everything below then runs over contiguous memory.
    part = work[:, block].T.contiguous()
    upper = factor.upper[block, block].contiguous()
    diagonal = upper.diagonal()
    scales = diagonal.tolist()
    errors = torch.empty_like(part)
    for first in range(0, len(part), group):
        last = min(first + group, len(part))
        scores = (part[first:last] / diagonal[first:last, None]).square()
        start = block.start + first
        chosen = choose(scores.T.contiguous(), start)
        keep[:, start : block.start + last] = chosen
        gone = (~chosen).T.float()
        for i in range(first, last):
            error = torch.mul(part[i], gone[i - first], out=errors[i])
            error.div_(scales[i])
            part[i + 1 :].addr_(upper[i, i + 1 :], error, alpha=-1)
    work[:, block] = part.T
    return errors


def _check(weight: torch.Tensor, hessian: torch.Tensor) -> None:
    if weight.dim() != 2 or hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"weight: found shape {tuple(weight.shape)} with a Hessian of shape "
            f"{tuple(hessian.shape)}. Expected [O, K] and [K, K]."
        )
    invalid = weight.numel() - int(weight.isfinite().sum())
    if invalid:
        raise ValueError(
            f"weight: {invalid} of {weight.numel()} values are not finite. Expected "
            "numbers: check the model."
        )


def _note(factor: InverseFactor, percdamp: float) -> str | None:
    # Exact: the first attempt uses percdamp itself.
    if factor.percdamp == percdamp:
        return None
    return f"damping raised from {percdamp:g} to {factor.percdamp:g}"
