"""The targets by name; each is imported when it is asked for."""

from __future__ import annotations

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


def make_target(name: str) -> Target:
    """Return a new target."""
    target: Target = getattr(import_module(f"fuzzing.{name}_target"), TARGETS[name])()
    return target
