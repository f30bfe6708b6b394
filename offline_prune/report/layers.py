"""What was done to one layer and to one decoder block."""

from __future__ import annotations

import math

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from nmsparse.pattern import NMPattern, parse_pattern
from offline_prune.report.record import Count, Real, Record, Seconds, Share


class LayerResult(Record):
    """One pruned linear.

    Attributes:
        name: of the module, such as ``model.layers.0.mlp.up_proj``.
        block: index of its decoder block.
        out_features: O.
        in_features: K.
        pattern: ``2:4`` and the like, None if unstructured.
        target: share of weights that was to be removed.
        removed: number of weights that the pruner removed.
        sparsity: ``removed / (O * K)``.
        zeros: number of zeros in the saved weight. More than ``removed`` if the dense
            weight had zeros of its own among those that stay.
        fallback: why another score was used than the one asked for, None if it was not.
        relative_error: ``sqrt(tr(D C D^T) / tr(W C W^T))``, D the change of the weight
            and C the second moment of the layer's input: the change of its output.
        seconds: time spent on the layer.
        tensor: its name in the weight files, None for ``name`` + ``.weight``.
        transposed: whether the file holds ``[K, O]`` (Conv1D of GPT-2).
    """

    name: str = Field(min_length=1)
    block: Count
    out_features: int = Field(ge=1)
    in_features: int = Field(ge=1)
    pattern: str | None = None
    target: Share
    removed: Count
    sparsity: Share
    zeros: Count
    fallback: str | None = None
    relative_error: Real | None = None
    seconds: Seconds = 0.0
    tensor: str | None = None
    transposed: bool = False

    @field_validator("pattern")
    @classmethod
    def _is_nm(cls, pattern: str | None) -> str | None:
        if pattern is not None and not isinstance(parse_pattern(pattern), NMPattern):
            raise ValueError(
                f"pattern {pattern!r} is no N:M pattern. Expected 2:4 and the like, or "
                "null for an unstructured layer."
            )
        return pattern

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        expect_share(self.name, self.sparsity, removed=self.removed, total=self.size)
        if not self.removed <= self.zeros <= self.size:
            raise ValueError(
                f"{self.name} has {self.zeros} zeros and {self.removed} weights removed"
                f". Expected removed <= zeros <= {self.size}."
            )
        return self

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features

    @property
    def stored_as(self) -> str:
        """Name of the dense weight in the files."""
        return self.tensor or f"{self.name}.weight"

    @property
    def nm(self) -> NMPattern | None:
        """The N:M pattern, None if unstructured."""
        if self.pattern is None:
            return None
        found = parse_pattern(self.pattern)
        return found if isinstance(found, NMPattern) else None

    @property
    def kind(self) -> str:
        """Which linear of a block it is: ``q_proj``, or ``experts.up_proj``."""
        parts = [part for part in self.name.split(".") if not part.isdigit()]
        owner = [part for part in parts[-2:-1] if "expert" in part]
        return ".".join([*owner, parts[-1]] if parts else [self.name])


class BlockResult(Record):
    """One decoder block.

    Attributes:
        index: of the block.
        sparsity: share of its linears' weights that was removed.
        measures: what allocators measured on the dense block, by name.
    """

    index: Count
    sparsity: Share
    measures: dict[str, Real] = Field(default_factory=dict)


def expect_share(name: str, share: float, *, removed: int, total: int) -> None:
    """Refuse a share that does not follow from the counts.

    Raises:
        ValueError: naming both.
    """
    expected = removed / total if total else 0.0
    if not math.isclose(share, expected, rel_tol=0.0, abs_tol=1e-9):
        raise ValueError(
            f"{name} has sparsity {share}, but {removed} of {total} weights are removed"
            f". Expected {expected}: the numbers were edited, or computed apart."
        )
