"""Apply a ``SparsityConfig`` to module names: one decision a module, with reason."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nmsparse.config import ConfigError, Group, SparsityConfig, WeightSparsity
from nmsparse.errors import printable
from nmsparse.targets import (
    DEFAULT_TARGETS,
    NEVER_TARGETS,
    Specificity,
    best_match,
    match,
)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a configuration says about one module.

    Attributes:
        group: the rule that applies, None if the module stays dense.
        reason: the target that decided, for people to read.
    """

    group: Group | None
    reason: str


@dataclass
class Resolver:
    """Resolve modules one by one and remember which targets matched something.

    Args:
        config: the configuration.
    """

    config: SparsityConfig
    _used: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)

    def resolve(
        self, names: Sequence[str], class_names: Iterable[str] = ("Linear",)
    ) -> Resolution:
        """Decide about one module.

        Args:
            names: its full name; for a fused module (``qkv_proj``) then the names of
                its parts (``q_proj``, ...), which must agree.
            class_names: its class and base classes.

        Raises:
            ConfigError: if the parts of a fused module get different rules.
        """
        classes = tuple(class_names)
        self._seen.update(names)
        whole = self._one(names[0], classes)
        parts = {name: self._one(name, classes) for name in names[1:]}
        if not parts or whole[0] is Specificity.NAME:
            return whole[1]
        ignored = whole[0] is not Specificity.NONE and whole[1].group is None
        named = any(how is Specificity.NAME and r.group for how, r in parts.values())
        if ignored and not named:
            return whole[1]
        # What was done to the weights is a record, and may differ between parts.
        distinct = {
            found.group.activation if found.group else None
            for _, found in parts.values()
        }
        if len(distinct) > 1:
            listing = ", ".join(f"{k}: {v.reason}" for k, (_, v) in parts.items())
            raise ConfigError(
                f"{names[0]}: its parts get different sparsity ({listing}). They share "
                "one input, so expected one rule: target all parts alike, or target "
                f"{names[0]} by name."
            )
        best = max(parts.values(), key=lambda item: item[0])
        if whole[0] > best[0]:
            return whole[1]
        return _common(best[1], [found.group for _, found in parts.values()])

    def check_targets(self) -> None:
        """Refuse targets that matched no module. Call after the last module.

        The default targets are exempt: they name the linears of many architectures. Of
        `ignore`, full names are checked: a typing error there would sparsify a layer.
        Groups that only record weights are exempt: checkpoints name modules that vLLM
        builds otherwise, or not as linear layers (experts).

        Raises:
            ConfigError: naming the target and the closest module.
        """
        for name, group in self.config.groups.items():
            for target in group.targets if group.activation else ():
                if target not in self._used and target not in DEFAULT_TARGETS:
                    raise self._unknown(f"groups.{printable(name)}", target)
        for target in self.config.ignore:
            full_name = "." in target and not target.startswith("re:")
            # vLLM builds no linear layers for heads and experts: dense in any case.
            never = best_match(NEVER_TARGETS, target, ())[0]
            if full_name and not never and target not in self._used:
                raise self._unknown("ignore", target)

    def _unknown(self, where: str, target: str) -> ConfigError:
        close = difflib.get_close_matches(target, self._seen, n=1, cutoff=0.5)
        example = close or sorted(self._seen)[:1] or ["model.layers.0.mlp.up_proj"]
        return ConfigError(
            f"{where}: unknown target '{printable(target)}': it matches none of the "
            f"{len(self._seen)} linear layers of this model. Expected a layer name "
            f"such as {example[0]}, a class name such as Linear, or re:<regex>."
        )

    def _one(
        self, name: str, classes: tuple[str, ...]
    ) -> tuple[Specificity, Resolution]:
        best, winner, chosen = Specificity.NONE, "", None
        for group in self.config.groups.values():
            for target in group.targets:
                found = match(target, name, classes)
                if found is not Specificity.NONE:
                    self._used.add(target)
                if found > best:
                    best, winner, chosen = found, target, group
        ignored, by = best_match(self.config.ignore, name, classes)
        self._used.add(by)
        if not ignored:
            ignored, by = best_match(NEVER_TARGETS, name, classes)
        # A module named in full is meant, whatever a broad ignore pattern says.
        if ignored and not (best is Specificity.NAME and ignored < Specificity.NAME):
            return ignored, Resolution(None, f"ignored by {by}")
        if chosen is None:
            return Specificity.NONE, Resolution(None, "no target matches")
        return best, Resolution(chosen, f"target {winner}")


def _common(best: Resolution, groups: Sequence[Group | None]) -> Resolution:
    """Return the rule of a fused module without weight records that its parts lack.

    Args:
        best: the rule of its most specific part.
        groups: the rules of all parts, with the same activation.
    """
    records = [group.weight if group else None for group in groups]
    if best.group is None or all(record == records[0] for record in records):
        return best
    patterns = {record.pattern if record else None for record in records}
    pattern = patterns.pop() if len(patterns) == 1 else None
    weight = WeightSparsity(pattern=pattern) if pattern is not None else None
    group = best.group.model_copy(update={"weight": weight})
    return Resolution(group, best.reason)


def require_sparse_layers(config: SparsityConfig, sparse: int, total: int) -> None:
    """Refuse a configuration that asks for activation sparsity and gets none.

    Args:
        config: the configuration.
        sparse: layers of the model whose input is sparsified.
        total: linear layers of the model.

    Raises:
        ConfigError: if no layer is sparse although a group has an activation pattern.
    """
    wanted = any(group.activation for group in config.groups.values())
    if wanted and not sparse:
        raise ConfigError(
            f"Activation sparsity reaches none of the {total} linear layers of this "
            "model. Expected at least one: name its layers in `targets` of a "
            "configuration file (--sparsity-config)."
        )
