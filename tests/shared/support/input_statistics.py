"""Statistics of inputs made up for a test."""

from __future__ import annotations

import torch

from offline_prune.statistics.inputs import InputStatistics
from offline_prune.statistics.needs import Need


def statistics_of(*sequences: torch.Tensor, needs=tuple(Need)) -> InputStatistics:
    """Return the statistics of sequences ``[T, K]``; everything is collected."""
    found = InputStatistics(
        sequences[0].shape[1], needs=needs, sequences=len(sequences)
    )
    for sequence in sequences:
        found.update(sequence)
    return found


def with_gram(gram: torch.Tensor) -> InputStatistics:
    """Return the statistics of one sequence with the Gram matrix ``[K, K]``."""
    return statistics_of(torch.linalg.cholesky(gram).T)


def gaussian(
    rows: int, columns: int, *, seed: int = 0, tokens: int = 96, sequences: int = 3
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a weight ``[rows, columns]`` and sequences of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    mix += torch.diag(torch.rand(columns, generator=generator) * 2)
    inputs = torch.randn(sequences, tokens, columns, generator=generator) @ mix + 0.3
    return weight, list(inputs)
