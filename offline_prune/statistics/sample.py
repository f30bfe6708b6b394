"""An evenly spread sample of token rows that does not depend on who saw which sequence.

Sequence ``i`` of ``n`` owns places ``i * S // n`` to ``(i + 1) * S // n`` of the ``S``
rows and fills them with rows at equal distances. So the sample is a function of the
sequences alone: any split over processes, and any order, gives the same rows.
"""

from __future__ import annotations

import torch


class RowSample:
    """At most ``rows`` rows, each with the index of its sequence.

    Args:
        features: length of a row, K.
        rows: most rows to keep, S.
        sequences: how many sequences will come. None when unknown: then a sequence
            fills the room that its predecessors left, and the first may take it all.
    """

    def __init__(self, features: int, *, rows: int, sequences: int | None) -> None:
        self._features = features
        self._limit = rows
        self._sequences = sequences
        self._values: list[torch.Tensor] = []  # each float32 [s, K]
        self._owners: list[torch.Tensor] = []  # each int64 [s]

    def add(self, x: torch.Tensor, *, index: int) -> None:
        """Take this sequence's share of rows.

        Args:
            x: ``[T, K]``, any floating dtype.
            index: the sequence's index among all sequences of the calibration.

        Raises:
            ValueError: if ``index`` is not below the declared number of sequences.
        """
        tokens = x.shape[0]
        share = min(self._share(index), tokens)
        if share == 0:
            return
        # Midpoints of `share` equal parts: never the same row twice, as share <= T.
        rows = (2 * torch.arange(share, device=x.device) + 1) * tokens // (2 * share)
        self._values.append(x[rows].float())
        self._owners.append(torch.full((share,), index))

    def extend(self, values: torch.Tensor, owners: torch.Tensor) -> None:
        """Append rows taken elsewhere.

        Args:
            values: float32 ``[s, K]``.
            owners: int64 ``[s]``: the index of each row's sequence.
        """
        if len(values):
            self._values.append(values)
            self._owners.append(owners.cpu())

    def clear(self) -> None:
        """Forget all rows."""
        self._values, self._owners = [], []

    def to(self, device: torch.device) -> None:
        """Move the rows to ``device``."""
        self._values = [part.to(device) for part in self._values]

    def read(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows in the order of their sequences, and their owners.

        Returns:
            float32 ``[s, K]`` on ``device`` and int64 ``[s]`` on the CPU, s <= S.
        """
        if not self._values:
            empty = torch.zeros(0, self._features, device=device)
            return empty, torch.zeros(0, dtype=torch.int64)
        values, owners = torch.cat(self._values), torch.cat(self._owners)
        order = torch.argsort(owners, stable=True)
        if len(order) > self._limit:
            # Only where sequences were not declared, so that two samples were full.
            order = order[_even(len(order), self._limit)]
        self._values, self._owners = [values[order.to(values.device)]], [owners[order]]
        return self._values[0].to(device), self._owners[0]

    def _share(self, index: int) -> int:
        """Return how many rows the sequence ``index`` may take."""
        if self._sequences is None:
            return max(self._limit - sum(len(part) for part in self._owners), 0)
        if not 0 <= index < self._sequences:
            raise ValueError(
                f"Sample of inputs: sequence {index} of {self._sequences}. Expected an "
                "index below the declared number: pass sequences= the number of all "
                "calibration sequences."
            )
        end = (index + 1) * self._limit // self._sequences
        return end - index * self._limit // self._sequences


def _even(length: int, count: int) -> torch.Tensor:
    """Return ``count`` indices below ``length`` at equal distances."""
    return (2 * torch.arange(count) + 1) * length // (2 * count)
