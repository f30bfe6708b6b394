"""The targets by name; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from fuzzing.case import Target

TARGETS = {
    "config": "ConfigTarget",
    "folder": "FolderTarget",
    "packed": "PackedTarget",
    "parameters": "ParametersTarget",
    "recipe": "RecipeTarget",
    "table": "TableTarget",
}


def target_class(name: str) -> Callable[[], Target]:
    """Return what makes a target, with all that it needs imported."""
    found: Callable[[], Target] = getattr(
        import_module(f"fuzzing.{name}_target"), TARGETS[name]
    )
    return found


def make_target(name: str) -> Target:
    """Return a new target."""
    return target_class(name)()
