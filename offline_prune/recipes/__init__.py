"""Recipes that come with the package: YAML files whose keys are a configuration's.

Those here are ``PruneConfig``'s; ``online/`` holds ``CalibrateConfig``'s.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from nmsparse.errors import printable
from nmsparse.suggest import unknown
from offline_prune.errors import InputError

_SUFFIX = ".yaml"
PRUNING, ONLINE = "", "online"


def recipe_names(kind: str = PRUNING) -> list[str]:
    """Return the names of all recipes of a kind, sorted."""
    entries = resources.files(__name__).joinpath(kind).iterdir()
    names = (entry.name for entry in entries)
    return sorted(name.removesuffix(_SUFFIX) for name in names if _SUFFIX in name)


def recipe_text(name: str, kind: str = PRUNING) -> str:
    """Return a recipe as it is, comments included.

    Args:
        name: with or without ``.yaml``.
        kind: ``PRUNING`` or ``ONLINE``.

    Raises:
        InputError: if there is no such recipe.
    """
    found = name.removesuffix(_SUFFIX)
    names = recipe_names(kind)
    if found not in names:
        raise InputError(unknown("recipe", name, names))
    folder = resources.files(__name__).joinpath(kind)
    return folder.joinpath(f"{found}{_SUFFIX}").read_text("utf-8")


def read_recipe(recipe: str | Path, kind: str = PRUNING) -> dict[str, Any]:
    """Return the fields of a YAML file, or of a shipped recipe by its name.

    Raises:
        InputError: if it cannot be read.
    """
    import yaml

    from offline_prune.yaml_text import load_yaml

    path = Path(recipe)
    try:
        named = path.suffix == "" and not path.exists()
        text = (
            recipe_text(str(recipe), kind)
            if named
            else path.read_text(encoding="utf-8")
        )
        data = load_yaml(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"Recipe {printable(recipe)} cannot be read "
            f"({printable(error, limit=2000)}). Expected a YAML file, or one of "
            f"{', '.join(recipe_names(kind))}."
        ) from None
    if not isinstance(data, dict):
        example = "'budget: 0.5'" if kind == ONLINE else "'scorer: wanda'"
        raise InputError(
            f"Recipe {recipe} holds no mapping. Expected fields such as {example}."
        )
    return data
