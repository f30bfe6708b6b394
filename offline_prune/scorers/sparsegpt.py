"""SparseGPT: choose and update in one sweep (arXiv 2301.00774).

Score ``W_ij^2 / U_jj^2`` with the factor of
:mod:`offline_prune.scorers.cholesky`, on weights that earlier columns have already
updated. Unstructured: the lowest of a block of columns (all rows) go, so that rows
differ. N:M: the lowest of each group go just before it is swept.

Two differences from the official code, for exact counts: it removes at least one weight
more than asked of every block (``<=``); here the layer's count is divided over the
blocks. And weights of dead inputs are scored zero but not zeroed unless removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from offline_prune.scorers.base import Pruned, Scorer
from offline_prune.scorers.cholesky import inverse_factor
from offline_prune.scorers.reconstruction import Choose, sweep
from offline_prune.selection import (
    Compare,
    LayerTarget,
    check_target,
    row_counts,
    select,
)
from offline_prune.statistics.needs import Need

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics


class SparseGpt(Scorer):
    """Remove what the others can make up for, and update the others."""

    name: ClassVar[str] = "sparsegpt"
    title: ClassVar[str] = "SparseGPT"
    paper: ClassVar[str] = "Frantar and Alistarh 2023, arXiv 2301.00774"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})
    default_compare: ClassVar[Compare] = "layer"

    percdamp: float = Field(
        default=0.01,
        ge=0.0,
        description="Damping, as a share of the Hessian's mean diagonal; raised "
        "tenfold up to three times if the Hessian is still singular.",
    )
    blocksize: int = Field(
        default=128,
        ge=1,
        description="Columns chosen and swept together; rounded up to a multiple of M.",
    )

    def scores(
        self, weight: torch.Tensor, statistics: InputStatistics | None
    ) -> torch.Tensor:
        """Return the scores before anything is removed, float32 ``[O, K]``.

        :meth:`prune` scores again while it sweeps; these are for comparisons.

        Args:
            weight: ``[O, K]``, any floating dtype.
            statistics: of its K inputs.

        Raises:
            ValueError: if the statistics are missing or do not fit.
            RuntimeError: if the Hessian cannot be factored.
        """
        hessian = self.inputs(weight, statistics).hessian().to(weight.device)
        factor = inverse_factor(hessian, percdamp=self.percdamp)
        scores = (weight.float() / factor.upper.diagonal()).square()
        scores[:, factor.dead] = 0.0
        return scores

    def prune(
        self,
        weight: torch.Tensor,
        statistics: InputStatistics | None,
        target: LayerTarget,
    ) -> Pruned:
        """Remove weights of one linear and update the others.

        Args:
            weight: ``[O, K]``, any floating dtype.
            statistics: of its K inputs.
            target: how much to remove. Counts per row, given or by comparing "row",
                are divided over the blocks of columns.

        Raises:
            ValueError: if the statistics are missing or do not fit, the target does
                not fit, or a value is not finite.
            RuntimeError: if the Hessian cannot be factored.
        """
        if reason := self.unseen(statistics):
            dense = weight.detach().float()
            return self.by_magnitude(dense, target, reason=reason)
        inputs = self.inputs(weight, statistics)
        check_target(target, weight.shape)
        blocksize = group = self.blocksize
        if target.pattern is not None:
            _, group = target.pattern.group(weight.shape[1])
            blocksize = -(-blocksize // group) * group
        done = sweep(
            weight,
            inputs.hessian(),
            self._chooser(weight, inputs, target),
            group=group,
            percdamp=self.percdamp,
            blocksize=blocksize,
        )
        return Pruned(done.weight, done.keep, done.note)

    def _chooser(
        self,
        weight: torch.Tensor,
        inputs: InputStatistics,
        target: LayerTarget,
    ) -> Choose:
        """Return how the weights of the next columns are chosen."""
        columns = weight.shape[1]
        if target.removed is None:
            return lambda scores, start: select(scores, target, compare="row")
        counts = target.rows
        if counts is None and self.comparison == "row":
            # Only who loses the remainder depends on these scores, so the cheapest.
            scores = weight.float().abs() * inputs.norm.to(weight.device)
            counts = row_counts(scores, removed=target.removed)
        total = torch.tensor(target.removed) if counts is None else counts

        def choose(scores: torch.Tensor, start: int) -> torch.Tensor:
            end = start + scores.shape[1]
            share = _share(total, end, columns) - _share(total, start, columns)
            if counts is None:
                block = LayerTarget.count(int(share))
            else:
                block = LayerTarget.per_row(share)
            return select(scores, block, compare="layer")

        return choose


def _share(total: torch.Tensor, end: int, columns: int) -> torch.Tensor:
    """Return what of ``total`` (int64) belongs to the first ``end`` columns, rounded.

    Differences of it divide a count over the blocks: exact, and never more than a
    block has.
    """
    return (2 * total * end + columns) // (2 * columns)
