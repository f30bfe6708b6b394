"""From scores to the weights that stay: N:M, a count a row, or a count a layer.

Counts are exact to one weight. The official codes of magnitude pruning, RIA and
SparseGPT compare with the threshold by ``<=`` and so remove at least one weight more
than asked, and every tie on top; Wanda's rounds every row down.

The tie rule is that of ``nmsparse.keep``: of equal scores the lower position stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from nmsparse.keep import select_keep
from nmsparse.pattern import NMPattern

Compare: TypeAlias = Literal["row", "layer"]

# Elements ordered at once: bounds the int64 temporaries at tens of megabytes.
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class LayerTarget:
    """What one layer has to lose. Use :meth:`nm`, :meth:`count` or :meth:`per_row`.

    Attributes:
        pattern: N:M, N kept of every M; None for an unstructured layer.
        removed: number of weights removed from an unstructured layer.
        rows: int64 ``[O]``, number removed from each row; sums to ``removed``.

    Raises:
        ValueError: if the fields contradict each other.
    """

    pattern: NMPattern | None = None
    removed: int | None = None
    rows: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if (self.pattern is None) == (self.removed is None):
            raise ValueError(
                f"Layer target: found pattern {self.pattern} and removed "
                f"{self.removed}. Expected one of them: use LayerTarget.nm, .count or "
                ".per_row."
            )
        if self.removed is not None and self.removed < 0:
            raise ValueError(
                f"Layer target: found removed {self.removed}. Expected 0 or more."
            )
        if self.rows is None:
            return
        if self.rows.dim() != 1 or self.rows.dtype != torch.int64:
            raise ValueError(
                f"Layer target: found rows {self.rows.dtype} of shape "
                f"{tuple(self.rows.shape)}. Expected int64 [O]."
            )
        if int(self.rows.sum()) != self.removed or bool((self.rows < 0).any()):
            raise ValueError(
                f"Layer target: rows sum to {int(self.rows.sum())}, smallest "
                f"{int(self.rows.min())}; removed is {self.removed}. Expected counts "
                "from 0 that sum to it: use LayerTarget.per_row."
            )

    @classmethod
    def nm(cls, pattern: NMPattern) -> LayerTarget:
        """Keep N of every M consecutive weights of a row."""
        return cls(pattern=pattern)

    @classmethod
    def count(cls, removed: int) -> LayerTarget:
        """Remove exactly ``removed`` weights of the layer."""
        return cls(removed=removed)

    @classmethod
    def per_row(cls, rows: torch.Tensor) -> LayerTarget:
        """Remove exactly ``rows[i]`` weights (int64 ``[O]``) of row ``i``."""
        return cls(removed=int(rows.sum()), rows=rows)

    def total(self, shape: Sequence[int]) -> int:
        """Return how many weights of a ``(O, K)`` layer are removed.

        Raises:
            ValueError: if M does not divide K.
        """
        if self.pattern is None:
            assert self.removed is not None
            return self.removed
        kept, group = self.pattern.group(shape[1])
        return shape[0] * (shape[1] // group) * (group - kept)


def select(
    scores: torch.Tensor, target: LayerTarget, *, compare: Compare
) -> torch.Tensor:
    """Choose the weights to keep.

    Args:
        scores: ``[O, K]``, any floating dtype, compared in float32; higher is kept.
        target: how much to remove.
        compare: "row" removes equally many weights of every row (and the rest of an
            uneven division where the next weight costs least), "layer" the lowest of
            the whole layer. N:M and counts per row leave nothing to compare.

    Returns:
        bool ``[O, K]``, True where the weight stays.

    Raises:
        ValueError: if a score is NaN, or the target does not fit the layer.
    """
    scores = _checked(scores, target)
    if target.pattern is not None:
        keep = torch.empty_like(scores, dtype=torch.bool)
        for part in _parts(scores):
            keep[part] = select_keep(scores[part], target.pattern)
        return keep
    assert target.removed is not None
    if target.rows is not None:
        return _keep_rows(scores, target.rows.to(scores.device))
    if compare == "row":
        return _keep_rows(scores, row_counts(scores, removed=target.removed))
    flat = scores.reshape(1, -1)
    counts = torch.tensor([target.removed], device=scores.device)
    return _keep_lowest_out(flat, counts).view_as(scores)


def row_counts(scores: torch.Tensor, *, removed: int) -> torch.Tensor:
    """Split a layer's count over its rows as the comparison "row" does.

    Every row loses ``removed // O`` weights; one more goes from each of the
    ``removed % O`` rows whose next weight costs least (of equal ones, the higher rows).

    Args:
        scores: ``[O, K]``, any floating dtype.
        removed: number of weights to remove, at most ``O * K``.

    Returns:
        int64 ``[O]``, with the sum ``removed``.

    Raises:
        ValueError: if a score is NaN, or ``removed`` is too large.
    """
    scores = _checked(scores, LayerTarget.count(removed))
    rows = scores.shape[0]
    base, rest = divmod(removed, rows) if rows else (0, 0)
    counts = torch.full((rows,), base, device=scores.device)
    if rest:
        # All counts are equal, so the level is each row's next weight.
        costs = [_level(scores[part], counts[part]) for part in _parts(scores)]
        extra = torch.tensor([rest], device=scores.device)
        counts += ~_keep_lowest_out(torch.cat(costs)[None], extra)[0]
    return counts


def removed(keep: torch.Tensor) -> int:
    """Return how many weights ``keep`` (bool, any shape) removes."""
    return keep.numel() - int(keep.sum())


def check_target(target: LayerTarget, shape: Sequence[int]) -> None:
    """Check that a target fits a layer of ``shape`` (O, K).

    Raises:
        ValueError: if M does not divide K, or more is removed than there is.
    """
    rows, columns = shape
    if target.pattern is not None:
        target.pattern.group(columns)
    elif target.removed is not None and target.removed > rows * columns:
        raise ValueError(
            f"Layer target: {target.removed} weights to be removed from a layer of "
            f"{rows} x {columns}. Expected at most all: check its share of the budget."
        )
    if target.rows is not None and (
        len(target.rows) != rows or bool((target.rows > columns).any())
    ):
        raise ValueError(
            f"Layer target: counts of {len(target.rows)} rows, up to "
            f"{int(target.rows.max())}, for a layer of {rows} x {columns}. Expected "
            "a count for each row, at most K."
        )


def _checked(scores: torch.Tensor, target: LayerTarget) -> torch.Tensor:
    """Return float32 scores that the target fits."""
    if scores.dim() != 2:
        raise ValueError(
            f"scores: found shape {tuple(scores.shape)}. Expected [O, K], one score a "
            "weight."
        )
    check_target(target, scores.shape)
    scores = scores.detach().float()
    invalid = int(scores.isnan().sum())
    if invalid:
        raise ValueError(
            f"scores: {invalid} of {scores.numel()} are NaN. Expected numbers: check "
            "the layer's weight and its calibration inputs for NaN and infinity."
        )
    return scores


def _parts(scores: torch.Tensor) -> list[slice]:
    """Return slices of rows with about ``_CHUNK`` elements each."""
    step = max(1, _CHUNK // max(scores.shape[1], 1))
    return [slice(start, start + step) for start in range(0, len(scores), step)]


def _keep_rows(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Keep all but the ``counts[i]`` lowest of each row ``i``."""
    keep = torch.empty_like(scores, dtype=torch.bool)
    for part in _parts(scores):
        keep[part] = _keep_lowest_out(scores[part], counts[part])
    return keep


def _level(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return for each row a score that its cut goes through, float32 ``[R]``.

    It is the lowest that stays or the highest that goes: fewer than ``counts[i] + 1``
    scores of the row lie below it, and at least ``counts[i]`` at or below.
    """
    last = scores.shape[1] - 1
    lowest, highest = (int(bound) for bound in counts.aminmax())
    if highest - lowest <= 1:
        return scores.kthvalue(min(lowest, last) + 1, dim=1).values
    index = counts.clamp(max=last)
    return scores.sort(dim=1).values.gather(1, index[:, None])[:, 0]


def _keep_lowest_out(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Keep all but the ``counts[i]`` lowest of each row; of equals the first stay."""
    if scores.numel() == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    level = _level(scores, counts)[:, None]
    keep = scores >= level
    # What is still to be removed is equal to the level: the last ones of the row.
    missing = counts - (scores.shape[1] - keep.sum(1))
    rows = missing.nonzero()[:, 0]
    if len(rows):
        equal = scores == level
        if len(rows) < len(scores):
            equal = equal[rows]
        row, column = equal.nonzero(as_tuple=True)
        from_last = equal.sum(1).cumsum(0)[row] - torch.arange(
            len(row), device=row.device
        )
        last = from_last <= missing[rows][row]
        keep[rows[row[last]], column[last]] = False
    return keep
