"""``PruneConfig``: one model for the function, the flags and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from nmsparse.pattern import NMPattern, parse_pattern
from nmsparse.registry import Registry
from nmsparse.suggest import unknown
from nmsparse.targets import check_target
from offline_prune.allocators import allocators
from offline_prune.calibration.config import CalibrationConfig
from offline_prune.channels import channels
from offline_prune.compensation import compensations
from offline_prune.options import Options
from offline_prune.recipes import read_recipe
from offline_prune.scorers import scorers


class PruneConfig(Options):
    """What to prune, and how.

    Exactly one of ``pattern`` and ``sparsity`` is given.

    Raises:
        pydantic.ValidationError: on construction; :meth:`parse` gives readable errors.
    """

    scorer: str = Field(default="wanda", description="How weights are ranked.")
    scorer_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the scorer, as JSON."
    )
    pattern: str | None = Field(
        default=None, description="N kept of every M weights of a row, such as 2:4."
    )
    sparsity: float | None = Field(
        default=None,
        ge=0.0,
        lt=1.0,
        description="Share of weights to remove, without structure, such as 0.5.",
    )
    mixed: bool = Field(
        default=False,
        description="With a pattern: every block gets its own N of the same M, by the "
        "allocator; the pattern is their mean.",
    )
    allocator: str = Field(
        default="uniform", description="How the budget is split over blocks."
    )
    allocator_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the allocator, as JSON."
    )
    correction: Literal["absorption"] | None = Field(
        default=None, description="Correction on top of the allocator."
    )
    correction_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the correction, as JSON."
    )
    channels: str | None = Field(
        default=None,
        description="How a layer's budget is split over its output channels.",
    )
    channel_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the channel method, as JSON."
    )
    permutation: bool = Field(
        default=False,
        description="With a pattern: reorder channels where the model can absorb it.",
    )
    compensation: tuple[str, ...] = Field(
        default=(), description="Corrections of the kept weights, in this order."
    )
    compensation_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Compensation to its options, as JSON."
    )
    bias: Literal["all", "available"] = Field(
        default="all",
        description="Compensation that needs biases: refuse models without room for "
        "all of them, or use what there is.",
    )
    targets: tuple[str, ...] = Field(
        default=(),
        description="What to prune: names, re:<regex> or classes; all linears of the "
        "decoder blocks by default.",
    )
    ignore: tuple[str, ...] = Field(default=(), description="What to leave dense.")
    lower: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Least sparsity of a block."
    )
    upper: float = Field(
        default=0.98, gt=0.0, le=1.0, description="Greatest sparsity of a block."
    )
    calibration: CalibrationConfig = Field(
        default_factory=CalibrationConfig, description="Text that the model reads."
    )
    profile: bool = Field(
        default=False,
        description="Measure every allocator on the dense model, for the report.",
    )
    format: Literal["dense", "bitmask"] = Field(
        default="dense", description="Weights with zeros, or packed bits and values."
    )
    seed: int = Field(default=0, ge=0, description="Of everything random.")

    @field_validator("pattern")
    @classmethod
    def _is_nm(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        found = parse_pattern(pattern)
        if not isinstance(found, NMPattern):
            raise ValueError(
                f"pattern {pattern!r} is no N:M pattern. Expected 2:4 and the like; a "
                "share of zeros is given with sparsity."
            )
        return str(found)

    @field_validator("targets", "ignore")
    @classmethod
    def _valid_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_target(target) for target in targets)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if (self.pattern is None) == (self.sparsity is None):
            raise ValueError(
                "exactly one of pattern and sparsity is expected, such as pattern 2:4 "
                "or sparsity 0.5."
            )
        _known("scorer", self.scorer, scorers)
        _known("allocator", self.allocator, allocators)
        if self.channels is not None:
            _known("channel method", self.channels, channels)
        for name in (*self.compensation, *self.compensation_options):
            _known("compensation", name, compensations)
        self._check_pattern()
        return self

    def _check_pattern(self) -> None:
        uneven = self.allocator != "uniform" or self.correction is not None
        if self.pattern is not None and uneven and not self.mixed:
            raise ValueError(
                f"pattern {self.pattern} fixes the sparsity of every layer, and an "
                "allocator changes it. Expected allocator uniform without correction, "
                "or mixed: true for one N of M a block."
            )
        if self.pattern is not None and self.channels is not None:
            raise ValueError(
                f"channels {self.channels} gives every row its own sparsity, which "
                f"pattern {self.pattern} does not allow. Expected sparsity instead."
            )
        for name in ("mixed", "permutation"):
            if getattr(self, name) and self.pattern is None:
                raise ValueError(f"{name} needs a pattern such as 8:16.")
        if self.lower >= self.upper:
            raise ValueError(
                f"lower {self.lower} is not below upper {self.upper}. Expected bounds "
                "of a block's sparsity, such as 0 and 0.98."
            )

    @property
    def nm(self) -> NMPattern | None:
        """The N:M pattern, None if unstructured."""
        if self.pattern is None:
            return None
        found = parse_pattern(self.pattern)
        assert isinstance(found, NMPattern)
        return found

    @property
    def target(self) -> float:
        """Share of weights to remove from the whole model."""
        if self.nm is not None:
            return self.nm.sparsity
        assert self.sparsity is not None
        return self.sparsity


def make_config(
    recipe: str | Path | None,
    changes: Mapping[str, Any],
    *,
    calibration: Mapping[str, Any] | None = None,
) -> PruneConfig:
    """Return the configuration of a recipe, with some fields replaced.

    Args:
        recipe: a YAML file, or the name of a shipped recipe; None for the defaults.
        changes: fields of :class:`PruneConfig`.
        calibration: fields of the calibration.

    Raises:
        InputError: if the recipe cannot be read or a field is invalid.
    """
    data = read_recipe(recipe) if recipe is not None else {}
    merged = {**data, **changes}
    # A pattern beside the recipe replaces its sparsity, and the reverse; options belong
    # to the method that the recipe names.
    for name, other in (
        ("pattern", "sparsity"),
        ("sparsity", "pattern"),
        ("scorer", "scorer_options"),
        ("allocator", "allocator_options"),
        ("correction", "correction_options"),
        ("channels", "channel_options"),
        ("compensation", "compensation_options"),
    ):
        if name in changes and other not in changes:
            merged.pop(other, None)
    before = merged.get("calibration") or {}
    if isinstance(before, Mapping):
        text = {**before, **(calibration or {})}
        # One seed for everything random, unless the text has its own.
        if "seed" in merged:
            text.setdefault("seed", merged["seed"])
        if text:
            merged["calibration"] = text
    source = f"recipe {recipe}" if recipe is not None else "options"
    return PruneConfig.parse(merged, source=source)


def _known(kind: str, name: str, registry: Registry[Any]) -> None:
    if name not in registry:
        raise ValueError(unknown(kind, name, registry))
