"""Running statistics of one linear's input, a sequence at a time.

The calibration of Wanda (arXiv 2306.11695) and SparseGPT (arXiv 2301.00774) keeps
running means in float32; here plain sums are kept, in float64 for the moments, so that
the result does not depend on the order of the sequences or on their split over
processes, and so that ``E x^2 - (E x)^2`` survives the subtraction.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from typing_extensions import Self

from offline_prune.statistics.needs import Need
from offline_prune.statistics.sample import RowSample

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Rows converted to float64 at once: bounds the temporary, 29 MB at K = 14336.
_ROWS = 256


class InputStatistics:
    """Sums over the calibration tokens of a linear's input ``x``, K channels.

    Buffers follow the device of the last ``x``. The moments are always kept; the Gram
    matrix and the sample only if needed.

    Args:
        features: number of input channels, K.
        needs: statistics to collect.
        sample_rows: most rows in :attr:`sample`.
        sequences: number of sequences of the whole calibration, all processes
            together. Declared, the sample is spread evenly over them and is the same
            for every split; otherwise the first sequences fill it.
        device: where the buffers are before the first ``x``; matters for a process
            that sees no token but takes part in :meth:`all_reduce`.

    Attributes:
        features: K.
        needs: statistics collected.
        tokens: number of rows seen.
        sequences: number of sequences seen, empty ones included.
        sum: float64 ``[K]``: sum of ``x``.
        sum_sq: float64 ``[K]``: sum of ``x^2``.
        sum_abs: float64 ``[K]``: sum of ``|x|``.
        gram: float32 ``[K, K]``: sum of ``x_t x_t^T``; None if not needed.
    """

    def __init__(
        self,
        features: int,
        *,
        needs: Collection[Need],
        sample_rows: int = 2048,
        sequences: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.features = features
        self.needs = frozenset(needs)
        self.tokens = 0
        self.sequences = 0
        self.sum = torch.zeros(features, dtype=torch.float64, device=device)
        self.sum_sq = torch.zeros_like(self.sum)
        self.sum_abs = torch.zeros_like(self.sum)
        self.gram: torch.Tensor | None = None
        if Need.GRAM in self.needs:
            self.gram = torch.zeros(features, features, device=device)
        self._nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        self._sample_rows = sample_rows
        self._declared = sequences
        self._sample: RowSample | None = None
        if Need.SAMPLE in self.needs:
            self._sample = RowSample(features, rows=sample_rows, sequences=sequences)

    def update(self, x: torch.Tensor, *, index: int | None = None) -> None:
        """Add the tokens of one sequence.

        Args:
            x: ``[T, K]`` or ``[1, T, K]``, any floating dtype, any device.
            index: the sequence's index in the whole calibration, which chooses its
                part of the sample; by default the number of sequences seen so far.

        Raises:
            ValueError: if the shape does not fit, or ``index`` is not below the
                declared number of sequences.
        """
        x = self._rows(x.detach())
        self.to(x.device)
        for part in x.split(_ROWS):
            # Squares of float32 are exact in float64: a constant channel has
            # variance zero.
            wide = part.float().double()
            squares = wide.square().sum(0)
            self.sum += wide.sum(0)
            self.sum_sq += squares
            self.sum_abs += wide.abs().sum(0)
            # Counted only where there are any: the squares' sum tells.
            if not bool(squares.sum().isfinite()):
                self._nonfinite += (~wide.isfinite()).sum()
        if self.gram is not None:
            single = x.float()
            self.gram.addmm_(single.T, single)
        if self._sample is not None:
            self._sample.add(x, index=self.sequences if index is None else index)
        self.tokens += x.shape[0]
        self.sequences += 1

    def merge(self, other: InputStatistics) -> None:
        """Add statistics of other sequences of the same input.

        Args:
            other: statistics of as many features and with the same needs; unchanged.

        Raises:
            ValueError: if features or needs differ.
        """
        if (self.features, self.needs) != (other.features, other.needs):
            raise ValueError(
                f"Statistics of {other.features} features with "
                f"{_names(other.needs)} cannot be merged into {self.features} features "
                f"with {_names(self.needs)}. Expected two of the same linear: collect "
                "both with the same needs."
            )
        for mine, theirs in zip(self._sums(), other._sums(), strict=True):
            mine += theirs.to(mine.device)
        if self._sample is not None and other._sample is not None:
            values, owners = other._sample.read(self.device)
            self._sample.extend(values, owners)
        self.tokens += other.tokens
        self.sequences += other.sequences

    def all_reduce(self, group: ProcessGroup | None = None) -> None:
        """Sum over the processes of ``group``, in place, on every one of them.

        Args:
            group: a group of torch.distributed; the default group if None. All its
                processes must call this with the same features and needs.
        """
        from offline_prune.statistics.distributed import gather_rows, sum_over

        self.tokens, self.sequences = sum_over(
            self._sums(), counts=(self.tokens, self.sequences), group=group
        )
        if self._sample is not None:
            parts = gather_rows(*self._sample.read(self.device), group=group)
            self._sample.clear()
            for values, owners in parts:
                self._sample.extend(values, owners)

    def permute(self, order: torch.Tensor) -> InputStatistics:
        """Return a copy with reordered channels: channel ``order[j]`` becomes ``j``.

        Args:
            order: int64 ``[K]``, every channel once.

        Raises:
            ValueError: if ``order`` is no permutation of the channels.
        """
        order = order.to(self.device)
        expected = torch.arange(self.features, device=self.device)
        if order.shape != expected.shape or not torch.equal(order.sort()[0], expected):
            raise ValueError(
                f"order: expected each of the {self.features} channels once, found "
                f"shape {tuple(order.shape)}. Pass a permutation of range(K)."
            )
        copy = InputStatistics(
            self.features,
            needs=self.needs,
            sample_rows=self._sample_rows,
            sequences=self._declared,
            device=self.device,
        )
        copy.tokens, copy.sequences = self.tokens, self.sequences
        copy._nonfinite = self._nonfinite.clone()
        copy.sum = self.sum[order]
        copy.sum_sq = self.sum_sq[order]
        copy.sum_abs = self.sum_abs[order]
        if self.gram is not None:
            copy.gram = self.gram.index_select(0, order).index_select(1, order)
        if self._sample is not None and copy._sample is not None:
            values, owners = self._sample.read(self.device)
            copy._sample.extend(values[:, order], owners)
        return copy

    def to(self, device: torch.device | str) -> Self:
        """Move the buffers to ``device`` and return ``self``."""
        device = torch.device(device)
        if device != self.device:
            self.sum = self.sum.to(device)
            self.sum_sq = self.sum_sq.to(device)
            self.sum_abs = self.sum_abs.to(device)
            self._nonfinite = self._nonfinite.to(device)
            if self.gram is not None:
                self.gram = self.gram.to(device)
            if self._sample is not None:
                self._sample.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return self.sum.device

    @property
    def nonfinite(self) -> int:
        """How many NaN and infinite values were seen; the sums are then worthless."""
        return int(self._nonfinite)

    @property
    def sample(self) -> torch.Tensor | None:
        """Some of the rows, float32 ``[S, K]``, by sequence; None if not needed."""
        return None if self._sample is None else self._sample.read(self.device)[0]

    @property
    def mean(self) -> torch.Tensor:
        """``E x``, float32 ``[K]``."""
        return (self.sum / max(self.tokens, 1)).float()

    @property
    def second_moment(self) -> torch.Tensor:
        """``E x^2``, float32 ``[K]``."""
        return (self.sum_sq / max(self.tokens, 1)).float()

    @property
    def abs_mean(self) -> torch.Tensor:
        """``E |x|``, float32 ``[K]``."""
        return (self.sum_abs / max(self.tokens, 1)).float()

    @property
    def variance(self) -> torch.Tensor:
        """``E x^2 - (E x)^2``, at least 0, float32 ``[K]``; computed in float64."""
        return self._variance().float()

    @property
    def norm(self) -> torch.Tensor:
        """``sqrt(sum x^2 / sequences)``, float32 ``[K]``: Wanda's ``sqrt(scaler)``."""
        return (self.sum_sq / max(self.sequences, 1)).sqrt().float()

    @property
    def covariance(self) -> torch.Tensor:
        """``E x x^T - E x E x^T``, float32 ``[K, K]``; its diagonal is the variance.

        Raises:
            ValueError: if the Gram matrix was not collected.
        """
        mean = self.mean
        result = self._require_gram() / max(self.tokens, 1)
        result.addr_(mean, mean, alpha=-1)
        # The diagonal is known better than float32 sums give it.
        result.diagonal().copy_(self._variance())
        return result

    def hessian(self) -> torch.Tensor:
        """Return SparseGPT's ``(2 / sequences) sum x x^T``, float32 ``[K, K]``, a copy.

        Raises:
            ValueError: if the Gram matrix was not collected.
        """
        return self._require_gram() * (2.0 / max(self.sequences, 1))

    def _variance(self) -> torch.Tensor:
        count = max(self.tokens, 1)
        return (self.sum_sq / count - (self.sum / count).square()).clamp(min=0)

    def _require_gram(self) -> torch.Tensor:
        if self.gram is None:
            raise ValueError(
                f"Input statistics: no Gram matrix, found {_names(self.needs)}. "
                "Expected Need.GRAM among the needs: name it in the method's needs."
            )
        return self.gram

    def _sums(self) -> list[torch.Tensor]:
        """Return the buffers that simply add up."""
        sums = [self.sum, self.sum_sq, self.sum_abs, self._nonfinite]
        return sums if self.gram is None else [*sums, self.gram]

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` as ``[T, K]``."""
        rows = x[0] if x.dim() == 3 and x.shape[0] == 1 else x
        if rows.dim() != 2 or rows.shape[1] != self.features:
            raise ValueError(
                f"Input statistics: found x of shape {tuple(x.shape)}. Expected one "
                f"sequence, [T, {self.features}] or [1, T, {self.features}]: split a "
                "batch into its sequences."
            )
        return rows


def _names(needs: Collection[Need]) -> str:
    return ", ".join(sorted(need.value for need in needs)) or "no needs"
