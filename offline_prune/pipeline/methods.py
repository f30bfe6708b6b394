"""The methods a configuration names, with their options, and what they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nmsparse.registry import Registry
from offline_prune.allocators import allocators
from offline_prune.allocators.absorption import Absorption
from offline_prune.allocators.base import Allocator
from offline_prune.channels import channels
from offline_prune.channels.ogas import Ogas
from offline_prune.compensation import compensations
from offline_prune.compensation.base import Compensation
from offline_prune.config import PruneConfig
from offline_prune.scorers import scorers
from offline_prune.scorers.base import Scorer
from offline_prune.statistics.needs import Need

# Rows of every layer's input that are kept to measure the error of its output.
ERROR_ROWS = 512


@dataclass(frozen=True, slots=True)
class Methods:
    """Everything that changes weights, ready to use.

    Attributes:
        scorer: ranks weights.
        allocator: splits the budget over blocks.
        correction: corrects the allocation, None for none.
        channels: splits a layer's budget over its rows, None for none.
        scales: compensations of the weights, in order.
        shift: compensation by biases, always last; None for none.
    """

    scorer: Scorer
    allocator: Allocator
    correction: Absorption | None
    channels: Ogas | None
    scales: tuple[Compensation, ...]
    shift: Compensation | None

    @classmethod
    def of(cls, config: PruneConfig) -> Methods:
        """Make the methods of a configuration.

        Raises:
            InputError: if an option is unknown or out of range.
        """
        shifts = [c for c in config.compensation if compensations.get(c).makes_bias]
        made = []
        for name in config.compensation:
            options = dict(config.compensation_options.get(name, {}))
            kind = compensations.get(name)
            # With the mean restored by a bias, only what varies is left to match.
            if shifts and "centred" in kind.model_fields:
                options.setdefault("centred", True)
            made.append(kind.parse(options, source=f"compensation {name}"))
        return cls(
            scorer=_make(scorers, "scorer", config.scorer, config.scorer_options),
            allocator=_make(
                allocators, "allocator", config.allocator, config.allocator_options
            ),
            correction=(
                Absorption.parse(
                    {"seed": config.seed, **config.correction_options},
                    source="absorption",
                )
                if config.correction
                else None
            ),
            channels=(
                _make(channels, "channels", config.channels, config.channel_options)
                if config.channels
                else None
            ),
            scales=tuple(c for c in made if not c.makes_bias),
            shift=next((c for c in made if c.makes_bias), None),
        )

    @property
    def needs(self) -> frozenset[Need]:
        """Statistics for pruning one block; empty if no data is needed."""
        found: set[Need] = set(self.scorer.required)
        found |= self.channels.needs if self.channels is not None else set()
        for method in (self.shift, *self.scales):
            found |= method.required if method is not None else set()
        # Where the model runs anyway, the error of every layer is measured as well.
        return frozenset(found | {Need.SAMPLE}) if found else frozenset()

    @property
    def needs_profile(self) -> bool:
        """Whether the dense model is measured before anything is pruned."""
        return self.allocator.measures or self.correction is not None

    @property
    def needs_data(self) -> bool:
        """Whether choosing the budget needs calibration text."""
        searched = getattr(self.allocator, "beta", 0.0) is None
        return bool(self.allocator.needs) or self.correction is not None or searched

    @property
    def sample_rows(self) -> int:
        """Rows of the sample of a layer's input."""
        return self.channels.sample_tokens if self.channels else ERROR_ROWS


def _make(registry: Registry[Any], kind: str, name: str, options: Any) -> Any:
    return registry.get(name).parse(options, source=f"{kind} {name}")
