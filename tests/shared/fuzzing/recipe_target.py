"""Recipes: YAML to the fields of a configuration."""

from __future__ import annotations

import random

from fuzzing.case import Finding
from fuzzing.files import Folder
from fuzzing.mutate import mutate_bytes

from offline_prune.config import PruneConfig
from offline_prune.errors import InputError
from offline_prune.recipes import read_recipe, recipe_names, recipe_text

_NAME = "recipe.yaml"
_LINES = [
    *("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "<<: {scorer: wanda}", "? [a]\n: b"),
    *("x: !!python/object/apply:os.system ['true']", "x: !!python/name:os.system"),
    *("seed: 2020-13-45", "seed: !!int ''", "seed: !!bool x", "seed: !!timestamp x"),
    *(
        "seed: 0b",
        "seed: 190:20:30.15",
        "seed: .nan",
        "seed: 1e999",
        "seed: !!binary x",
    ),
    *("seed: " + "[" * 1200, "seed: " + "9" * 5000, "scorer: wanda\nscorer: ria"),
    *(
        "model: ../../etc",
        "model: '\\0'",
        'model: "\\ud800"',
        "--- a\n--- b",
        "%YAML 9.9",
    ),
    *("targets: ['re:(a|a)*b']", "pattern: '8:16'", "options: {x: !!set {a, b}}"),
]


class RecipeTarget:
    """``read_recipe`` and ``PruneConfig.parse``."""

    name = "recipe"
    errors = (InputError,)

    def __init__(self) -> None:
        self._folder = Folder()
        self._seeds = [recipe_text(name) for name in recipe_names()]

    def make(self, rng: random.Random) -> dict[str, bytes]:
        """Return a recipe."""
        lines = rng.choice(self._seeds).splitlines()
        for _ in range(rng.choice((0, 1, 1, 2))):
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(_LINES))
        content = "\n".join(lines).encode()
        return {_NAME: mutate_bytes(rng, content) if rng.random() < 0.6 else content}

    def read(self, files: dict[str, bytes]) -> None:
        """Read the recipe and, if it is one, the configuration in it."""
        path = self._folder.fill(files) / _NAME
        data = read_recipe(path)
        if not isinstance(data, dict):
            raise Finding("a recipe that is no mapping")
        PruneConfig.parse(data, source="recipe")
