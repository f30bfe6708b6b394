"""``CalibrateConfig``: what online sparsity a model is calibrated for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from nmsparse.config import Phase
from nmsparse.criteria import DEFAULT_CRITERION, criteria
from nmsparse.mitigation import check_mitigations
from nmsparse.pattern import NMPattern, Unstructured, parse_pattern
from nmsparse.suggest import unknown
from nmsparse.targets import check_target
from offline_prune.calibration.config import CalibrationConfig
from offline_prune.online.fit.options import FitOptions
from offline_prune.online.levels import ROW_LEVELS, Levels
from offline_prune.options import Options
from offline_prune.recipes import ONLINE, read_recipe

# How densities are chosen: by cost curves, or by profiles of the weight side.
COSTS = ("final", "block")
PROFILES = ("owl", "alpha_pruning", "dlp")
ALLOCATORS = ("uniform", *COSTS, *PROFILES)


class CalibrateConfig(Options):
    """What is sparse at run time, and how it is fitted.

    Exactly one of ``pattern`` and ``budget`` is given.

    Raises:
        pydantic.ValidationError: on construction; :meth:`parse` gives readable errors.
    """

    pattern: str | None = Field(
        default=None,
        description="One pattern for every layer: 8:16, or a share of zeros (50%).",
    )
    budget: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="Share of the layers' weight bytes that a token may read; every "
        "layer gets its own density.",
    )
    group: str = Field(
        default="row",
        description="With a budget: channels of which a fixed number is kept, 16, 4 "
        "(N:M patterns), or row: all channels of a layer.",
    )
    allocator: str = Field(
        default="final",
        description="With a budget: final (estimated effect on the model's output), "
        "block (error of the block's output), owl, alpha_pruning, dlp, or uniform.",
    )
    correction: Literal["absorption"] | None = Field(
        default=None, description="Correction on top of owl, alpha_pruning or dlp."
    )
    criterion: str = Field(
        default=DEFAULT_CRITERION, description="How channels are ranked."
    )
    mitigation: tuple[str, ...] = Field(
        default=(), description="What reduces the error, such as var or r_sparse."
    )
    balanced: bool = Field(
        default=False,
        description="With N:M: deal the channels out to the groups by their energy.",
    )
    lower: int = Field(
        default=1, ge=1, description="Least level of a layer with a budget, of 16."
    )
    amplification: float = Field(
        default=0.5,
        ge=0,
        le=10,
        description="With allocator final: how much more early blocks cost, as a log.",
    )
    phase: Phase = Field(
        default=Phase.DECODE, description="Tokens that the folder asks to be sparse."
    )
    dense_first_token: bool = Field(
        default=False, description="Keep the first token of a request dense."
    )
    targets: tuple[str, ...] = Field(
        default=(), description="What is sparse; all linears of blocks by default."
    )
    ignore: tuple[str, ...] = Field(default=(), description="What stays dense.")
    gradient_windows: int = Field(
        default=8,
        ge=1,
        description="Calibration windows that sensitivities are measured on.",
    )
    fit: FitOptions = Field(
        default_factory=FitOptions, description="How mitigations are fitted."
    )
    calibration: CalibrationConfig = Field(
        default_factory=CalibrationConfig, description="Text that the model reads."
    )
    seed: int = Field(default=0, ge=0, description="Of everything random.")

    @field_validator("pattern")
    @classmethod
    def _valid_pattern(cls, pattern: str | None) -> str | None:
        return None if pattern is None else str(parse_pattern(pattern))

    @field_validator("group")
    @classmethod
    def _valid_group(cls, group: str) -> str:
        if group != "row" and not (group.isdigit() and int(group) in (4, 8, 16, 32)):
            raise ValueError(f"group {group!r} is invalid. Expected row, 4, 8, 16, 32.")
        return group

    @field_validator("mitigation")
    @classmethod
    def _one_a_slot(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_mitigations(names)
        return names

    @field_validator("targets", "ignore")
    @classmethod
    def _valid_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_target(target) for target in targets)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if (self.pattern is None) == (self.budget is None):
            raise ValueError(
                "exactly one of pattern and budget is expected, such as pattern 8:16 "
                "or budget 0.5."
            )
        if self.criterion not in criteria:
            raise ValueError(unknown("criterion", self.criterion, criteria))
        if self.allocator not in ALLOCATORS:
            raise ValueError(unknown("allocator", self.allocator, ALLOCATORS))
        if self.correction is not None and self.allocator not in PROFILES:
            raise ValueError(
                f"correction {self.correction} changes profiles, and allocator "
                f"{self.allocator} has none. Expected one of {', '.join(PROFILES)}."
            )
        if self.balanced and self.levels.m is None:
            raise ValueError(
                "balanced deals channels out to groups of M, and here a row is one "
                "group. Expected a pattern such as 8:16, or group 16."
            )
        if self.lower > self.levels.count:
            raise ValueError(
                f"lower {self.lower} is above {self.levels.count}, the level of a "
                "dense layer. Expected less."
            )
        return self

    @property
    def levels(self) -> Levels:
        """The densities a layer can have."""
        if self.pattern is not None:
            found = parse_pattern(self.pattern)
            if isinstance(found, NMPattern):
                return Levels(found.m, found.m)
            return Levels(None, ROW_LEVELS)
        return (
            Levels(None, ROW_LEVELS) if self.group == "row" else Levels.nm(self.group)
        )

    @property
    def uniform(self) -> NMPattern | Unstructured | None:
        """The pattern of every layer, None if layers get their own."""
        return None if self.pattern is None else parse_pattern(self.pattern)

    @property
    def measures_costs(self) -> bool:
        """Whether cost curves are measured."""
        return self.pattern is None and self.allocator in COSTS

    def as_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return self.model_dump(mode="json")


def make_calibrate_config(
    recipe: str | Path | None,
    changes: Mapping[str, Any],
    *,
    calibration: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
) -> CalibrateConfig:
    """Return the configuration of a recipe, with some fields replaced.

    Args:
        recipe: a YAML file, or the name of a shipped recipe; None for the defaults.
        changes: fields of :class:`CalibrateConfig`.
        calibration: fields of the calibration text.
        fit: fields of the fit.

    Raises:
        InputError: if the recipe cannot be read or a field is invalid.
    """
    data = read_recipe(recipe, ONLINE) if recipe is not None else {}
    merged = {**data, **changes}
    # A pattern beside a recipe replaces its budget, and the reverse.
    for name, other in (("pattern", "budget"), ("budget", "pattern")):
        if name in changes and other not in changes:
            merged.pop(other, None)
    for name, given in (("calibration", calibration), ("fit", fit)):
        before = merged.get(name) or {}
        if isinstance(before, Mapping) and (before or given):
            merged[name] = {**before, **(given or {})}
    if "seed" in merged and isinstance(merged.get("calibration"), dict):
        merged["calibration"].setdefault("seed", merged["seed"])
    source = f"recipe {recipe}" if recipe is not None else "options"
    return CalibrateConfig.parse(merged, source=source)
