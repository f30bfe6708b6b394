"""``Online``: how one layer is sparsified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from nmsparse.criteria import DEFAULT_CRITERION, criteria
from nmsparse.mitigation import Mitigation, check_mitigations, mitigations
from nmsparse.mitigation.shift import token_statistic
from nmsparse.ops.sparsify.correction import Correction
from nmsparse.parameters.layer import NO_PARAMETERS, Parameters
from nmsparse.pattern import Pattern

# Tensors that no mitigation asks for: the criterion's, and the order of channels.
_ALWAYS = ("factor", "channel_groups")


@dataclass(frozen=True, slots=True, eq=False)
class Online:
    """Pattern, criterion, mitigations and learned tensors of one (fused) layer.

    Attributes:
        pattern: which channels of each token stay.
        criterion: name of the score that ranks them.
        mitigation: names of mitigations, at most one a slot.
        parameters: learned tensors, and the static factor of the criterion.
    """

    pattern: Pattern
    criterion: str = DEFAULT_CRITERION
    mitigation: tuple[str, ...] = ()
    parameters: Parameters = NO_PARAMETERS

    def check(self, in_features: int, out_features: int) -> None:
        """Verify that the parts fit each other and the layer. Call it once, at load.

        Raises:
            ValueError: if a name is unknown, two mitigations take one slot, a tensor is
                missing, unused or of another shape, or M does not divide K.
        """
        chosen = check_mitigations(self.mitigation)
        self.pattern.group(in_features)
        self._check_factor()
        given = {name for name, _ in self.parameters.items()}
        wanted = {name: item.name for item in chosen for name in item.parameters}
        for name, by in wanted.items():
            if name not in given:
                raise ValueError(
                    f"Mitigation {by} needs {name}. Expected it in the parameters "
                    "file: calibrate the model (`offline-prune calibrate`)."
                )
        for name in sorted(given - set(wanted) - set(_ALWAYS)):
            users = [m for m in mitigations if name in mitigations.get(m).parameters]
            raise ValueError(
                f"The parameters hold {name}, but no mitigation uses it. Expected "
                f"{' or '.join(users)} in `mitigation`: add it, or calibrate again."
            )
        self.parameters.check(in_features, out_features)

    def _check_factor(self) -> None:
        needs = criteria.get(self.criterion).needs
        has_factor = self.parameters.factor is not None
        if has_factor and needs in ("nothing", "batch"):
            raise ValueError(
                f"The parameters hold factor, but criterion {self.criterion} takes "
                "none. Expected a criterion with a static factor such as second_order."
            )
        if not has_factor and needs == "calibration":
            raise ValueError(
                f"Criterion {self.criterion} needs factor. Expected it in the "
                "parameters file: calibrate the model (`offline-prune calibrate`)."
            )
        if not has_factor and needs == "weight":
            raise ValueError(
                f"Criterion {self.criterion} needs factor, made of the weight. "
                "Expected it: call nmsparse.ops.online.prepare first."
            )

    @property
    def is_plain(self) -> bool:
        """Whether this is a choice by magnitude and nothing else."""
        nothing = self.criterion == DEFAULT_CRITERION and not self.mitigation
        return nothing and not any(True for _ in self.parameters.items())

    @property
    def statistic(self) -> Literal["mean", "median"] | None:
        """What is subtracted from each token (D-PTS); None for nothing.

        Nothing if all channels stay and no learned scale treats the kept part apart:
        the shift would be given back whole, and rounding would be all it leaves.
        """
        if self.pattern.is_dense and self.parameters.output_scale is None:
            return None
        return next((m.statistic for m in self._chosen() if m.statistic), None)

    @property
    def variance(self) -> bool:
        """Whether the product of each token is scaled (VAR)."""
        return any(m.slot == "variance" for m in self._chosen())

    @property
    def residual(self) -> bool:
        """Whether dropped channels pass through a low-rank matrix (R-Sparse)."""
        return any(m.slot == "residual" for m in self._chosen())

    @property
    def needs_batch(self) -> bool:
        """Whether the scores depend on the other tokens of the step (CLACT)."""
        return criteria.get(self.criterion).needs == "batch"

    def _chosen(self) -> tuple[Mitigation, ...]:
        return tuple(mitigations.get(name) for name in self.mitigation)

    def token_shift(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the shift of each token of ``x`` (``[T, K]``): ``[T]`` float32."""
        statistic = self.statistic
        return None if statistic is None else token_statistic(x, statistic)

    def correction(self, x: torch.Tensor) -> Correction:
        """Return what ``sparsify`` and ``compact`` need for these tokens.

        Args:
            x: ``[T, K]``, the tokens that are sparsified in this step. Channels are in
                their own order: ``channel_groups`` is not applied.

        Raises:
            ValueError: if the criterion's static factor is missing.
        """
        return Correction(
            factor=self.parameters.factor,
            channel_shift=self.parameters.channel_shift,
            token_shift=self.token_shift(x),
            variance=self.variance,
        ).with_factor_of(self.criterion, x)


def prepare(weight: torch.Tensor, online: Online) -> Online:
    """Return ``online`` with the static factor of its criterion, made of the weight.

    A factor that is there already (from the parameters file) stays.

    Args:
        weight: ``[O, K]``, all rows of a fused layer.
        online: how the layer is sparsified.

    Raises:
        ValueError: if the factor comes from a calibration and is missing.
    """
    if online.parameters.factor is not None:
        return online
    factor = criteria.get(online.criterion).factor(weight)
    if factor is None:
        return online
    return replace(online, parameters=replace(online.parameters, factor=factor))
