"""OGAS: rows whose outputs have energy and peaks keep more.

Li et al. 2026, "OGAS: Output-activation guided pruning with adaptive sparsity for large
language model", Journal of Nanjing University (Natural Science) 62(3), 422-433, DOI
10.13232/j.cnki.jnju.2026.03.008. Only the abstract was available: it names output
energy and PAPR as measures of a channel, a curved map to channel sparsity, and a
golden-section search layer by layer. All formulas here are our formulation.

With ``q`` of ``protection.py``, ``s_i = S + A (mean c(q) - c(q_i; kappa))`` within
``[S - 0.3, S + 0.3]``, projected onto the linear's budget. ``kappa`` minimises
``J = sum_i ||X (w_i - what_i)||^2`` on sampled inputs. ``A = 0``, the same number from
every row, is always among the candidates, so J is never worse than without OGAS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field

from offline_prune.channels.golden_section import golden_section
from offline_prune.channels.protection import curvature, energy, papr, protection
from offline_prune.channels.rows import split_rows
from offline_prune.options import Options
from offline_prune.selection import row_counts
from offline_prune.statistics.inputs import InputStatistics
from offline_prune.statistics.needs import Need

_REACH = 0.3
_UPPER = 0.98


@dataclass(frozen=True, slots=True, eq=False)
class RowChoice:
    """How a linear's budget was split.

    Attributes:
        rows: int64 ``[O]``, weights to remove from each row.
        kappa: curvature of the map; None where A = 0 was best.
        error: J of the choice; 0 if there were no sampled inputs.
        uniform_error: J of A = 0.
        evaluations: how many splits were compared.
    """

    rows: torch.Tensor
    kappa: float | None
    error: float
    uniform_error: float
    evaluations: int


class Ogas(Options):
    """Split a linear's budget over its output rows by their activations.

    For unstructured sparsity: N:M gives every row the same share.
    """

    name: ClassVar[str] = "ogas"
    title: ClassVar[str] = "OGAS"
    paper: ClassVar[str] = (
        "Li et al. 2026, DOI 10.13232/j.cnki.jnju.2026.03.008; our formulation"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SAMPLE})

    amplitude: float = Field(
        default=0.2,
        ge=0.0,
        le=0.6,
        description="distance of the largest and smallest share of a linear's rows",
    )
    weight: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="of the energy; the rest is of the peak-to-average ratio",
    )
    kappa: float = Field(
        default=4.0, gt=0.0, le=50.0, description="search from -kappa to kappa"
    )
    tolerance: float = Field(
        default=0.1, gt=0.0, description="width of the bracket that ends the search"
    )
    evaluations: int = Field(
        default=12, ge=2, description="most splits the golden section compares"
    )
    row_normalised: bool = Field(
        default=False,
        description="divide each row's error by its energy, so that loud rows do not "
        "decide alone",
    )
    sample_tokens: int = Field(
        default=2048, ge=1, description="most sampled inputs that are used"
    )

    def row_targets(
        self,
        weight: torch.Tensor,
        scores: torch.Tensor,
        statistics: InputStatistics | None,
        *,
        removed: int,
    ) -> torch.Tensor:
        """Return how many weights to remove from each row, int64 ``[O]``.

        See :meth:`search`.
        """
        return self.search(weight, scores, statistics, removed=removed).rows

    def search(
        self,
        weight: torch.Tensor,
        scores: torch.Tensor,
        statistics: InputStatistics | None,
        *,
        removed: int,
    ) -> RowChoice:
        """Choose the split with the least output error on sampled inputs.

        Args:
            weight: float32 ``[O, K]``, dense.
            scores: float32 ``[O, K]``, higher is kept; each row loses its lowest.
            statistics: of the linear's input, with a sample. Without sampled inputs
                (an expert that no token reached) every row loses the same number.
            removed: weights to remove from the linear.

        Returns:
            The choice; ``rows`` sum to ``removed`` exactly.

        Raises:
            ValueError: if a score is NaN, or ``removed`` is out of range.
        """
        uniform = row_counts(scores, removed=removed)
        sample = None if statistics is None else statistics.sample
        if sample is None or len(sample) == 0:
            return RowChoice(uniform, None, 0.0, 0.0, 0)
        stride = -(-len(sample) // self.sample_tokens)
        inputs = sample[::stride].to(weight.device)
        outputs = inputs @ weight.T  # [T, O]
        energies = energy(outputs)
        shield = protection(energies, papr(outputs), self.weight)
        scale = torch.ones_like(energies)
        if self.row_normalised:
            scale = torch.where(energies > 0, energies.square(), 1.0)
        ranks = _ranks(scores)

        def error(rows: torch.Tensor) -> float:
            lost = inputs @ (weight * (ranks < rows[:, None])).T  # [T, O]
            return float((lost.double().square().sum(0) / scale).sum())

        uniform_error = error(uniform)
        if self.amplitude == 0 or not bool((shield > 0).any()):
            return RowChoice(uniform, None, uniform_error, uniform_error, 1)

        def split(kappa: float) -> torch.Tensor:
            return self._split(shield, kappa, weight.shape[1], removed)

        edge = self.kappa
        inside = golden_section(
            lambda kappa: error(split(kappa)),
            (-edge, edge),
            tolerance=self.tolerance,
            evaluations=self.evaluations,
        )
        ends = [(error(split(kappa)), kappa) for kappa in (-edge, edge)]
        least, kappa = min([(inside.value, inside.at), *ends])
        calls = 3 + inside.evaluations
        if not least < uniform_error:
            return RowChoice(uniform, None, uniform_error, uniform_error, calls)
        return RowChoice(split(kappa), kappa, least, uniform_error, calls)

    def _split(
        self, shield: torch.Tensor, kappa: float, columns: int, removed: int
    ) -> torch.Tensor:
        """Return the split at one curvature, int64 ``[O]``."""
        share = removed / (len(shield) * columns)
        bent = curvature(shield, kappa)
        return split_rows(
            share + self.amplitude * (bent.mean() - bent),
            columns,
            removed=removed,
            lower=max(0.0, share - _REACH),
            upper=max(share, min(_UPPER, share + _REACH)),
        )


def _ranks(scores: torch.Tensor) -> torch.Tensor:
    """Return each score's rank in its row, int32 ``[O, K]``; the lowest has rank 0.

    Of equal scores the lower index stays longer, as in ``selection.select``.
    """
    columns = scores.shape[1]
    order = scores.flip(1).argsort(dim=1, stable=True)
    place = torch.arange(columns, dtype=torch.int32, device=scores.device)
    ranks = torch.empty_like(scores, dtype=torch.int32)
    return ranks.scatter_(1, order, place.expand_as(order)).flip(1)
