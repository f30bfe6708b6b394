"""What layers that own their weight have in common, on a CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nmsparse.pattern import NMPattern
    from vllm_sparse.phases import Steps
    from vllm_sparse.treatment.layer import Treatment
    from vllm_sparse.work import Work


@dataclass(frozen=True, slots=True)
class Selection:
    """What is sparsified.

    Attributes:
        pattern: N of M channels stay.
        phase: codes of the tokens, 0 for all.
        treatment: what is done beyond magnitude; None for nothing.
    """

    pattern: NMPattern
    phase: int
    treatment: Treatment | None = None

    @property
    def density(self) -> float:
        """Share of channels that stay."""
        return self.pattern.n / self.pattern.m


class HeldWeights(Protocol):
    """What a layer holds beside vLLM's weight."""

    @property
    def sparsity(self) -> float:
        """Share of zeros found in the weight."""

    @property
    def nbytes(self) -> int:
        """Bytes of copies of ours."""


class OwnedLinear(Protocol):
    """A layer's kernels and weight copies, as far as reports look at them."""

    def work(self, steps: Sequence[Steps] = ()) -> Work:
        """Return what the layer did, where steps must tell in these steps."""

    def reset(self) -> None:
        """Count from zero again, where the layer counts."""

    @property
    def weights(self) -> HeldWeights:
        """What the layer holds."""

    def describe(self) -> str:
        """Return what runs the layer, for people to read."""

    def explain(self) -> dict[str, str]:
        """Return the way of every number of tokens, with its gain over the first."""
