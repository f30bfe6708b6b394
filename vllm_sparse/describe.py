"""What is said about a configuration when it starts: treatments, and weights read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nmsparse.config import ActivationSparsity, SparsityConfig


@dataclass(frozen=True, slots=True)
class WeightsRead:
    """What a sparsified token reads of one layer.

    Attributes:
        elements: of the weight.
        density: share of its channels that stay.
        extra: elements read beside it: low-rank matrices.
    """

    elements: int
    density: float
    extra: int = 0


def share_read(layers: Sequence[WeightsRead]) -> float | None:
    """Return the share of the sparsified layers' weights that a token reads.

    What is read beside them counts. None without layers.
    """
    total = sum(layer.elements for layer in layers)
    read = sum(layer.elements * layer.density + layer.extra for layer in layers)
    return read / total if total else None


def describe_share(layers: Sequence[WeightsRead]) -> str:
    """Return the share as the end of a line; empty without layers."""
    share = share_read(layers)
    return "" if share is None else f"; they read {100 * share:.1f} % of their weights"


def describe(config: SparsityConfig) -> str:
    """Return criteria, mitigations and phase of a configuration, for people to read."""
    used = [group.activation for group in config.groups.values() if group.activation]
    ways = ", ".join(sorted({_way(activation) for activation in used}))
    first = ", first tokens dense" if config.dense_first_token else ""
    return f"{ways or 'none'}; phase {config.phase.value}{first}"


def _way(activation: ActivationSparsity) -> str:
    return " + ".join((activation.criterion, *activation.mitigation))
