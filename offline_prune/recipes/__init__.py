"""Recipes that come with the package: YAML files whose keys are ``PruneConfig``'s."""

from __future__ import annotations

from importlib import resources

from nmsparse.suggest import unknown
from offline_prune.errors import InputError

_SUFFIX = ".yaml"


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted."""
    entries = resources.files(__name__).iterdir()
    names = (entry.name for entry in entries)
    return sorted(name.removesuffix(_SUFFIX) for name in names if _SUFFIX in name)


def recipe_text(name: str) -> str:
    """Return a recipe as it is, comments included.

    Args:
        name: with or without ``.yaml``.

    Raises:
        InputError: if there is no such recipe.
    """
    found = name.removesuffix(_SUFFIX)
    names = recipe_names()
    if found not in names:
        raise InputError(unknown("recipe", name, names))
    return (resources.files(__name__) / f"{found}{_SUFFIX}").read_text("utf-8")
