"""docs/recipes.md: the YAML recipes that come with the package, with measured rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))
import rows

from offline_prune.methods import find_method

RECIPES = Path(__file__).resolve().parent.parent.parent / "offline_prune/recipes"

_HEAD = """\
# Recipes

<!-- Made by docs/site/reference.py from offline_prune/recipes/. Do not edit. -->

A recipe is a YAML file with the fields of a command; `--recipe` takes the name of one
that comes with the package, or a file of your own. Flags replace its fields:
`--calibration` names your text, `--sparsity`, `--pattern` or `--budget` another amount.
Without `--calibration` the recipes read C4 from the Hub, which needs a network and
`pip install 'vllm-sparse[datasets]'`. Calibrate on text like what the model will read,
and never on the text that judges.

"Measured" is perplexity on Gemma 3 270M, from rows whose settings are the recipe's, but
with the calibration text of [pruning](pruning-results.md) and
[online](online-results.md) results; dense is {dense:.2f}. A small model has little to
spare: read orders, not values. A dash means that nobody measured this setting here.
"""
_NOT_COMPARED = ("calibration", "lower", "gradient_windows")
_DEFAULTS = {
    "scorer": "wanda",
    "allocator": "uniform",
    "group": "row",
}
_OPTIONS = {
    "scorer_options": "scorer",
    "allocator_options": "allocator",
    "correction_options": "correction",
    "channel_options": "channels",
}


def page() -> str:
    """Return the whole page."""
    parts = [
        _HEAD.format(dense=rows.read("pruning")[-1]["dense_perplexity"]),
        "## Online: sparse activations\n",
        "Weights stay as they are; the folder serves itself "
        "([calibration](calibration.md)).\n",
        *_table(sorted(RECIPES.glob("online/*.yaml")), _online),
        "\n```console\n$ offline-prune calibrate org/name --recipe rows-50 "
        "--calibration my-texts.jsonl --output name-rows-50\n"
        "$ vllm-sparse serve name-rows-50\n```\n",
        "## Offline: pruned weights\n",
        "A folder with zeros in its weights ([pruning](pruning.md)).\n",
        *_table(sorted(RECIPES.glob("*.yaml")), _offline),
        "\n```console\n$ offline-prune run org/name --recipe wanda-50 "
        "--calibration my-texts.jsonl --output name-wanda-50\n"
        "$ offline-prune verify name-wanda-50\n"
        "$ vllm-sparse serve name-wanda-50 --sparse-weights auto\n```\n",
        "## The files\n",
        *_files(),
    ]
    return "\n".join(parts)


def _table(files: list[Path], measured: Any) -> Iterator[str]:
    yield "| recipe | what | take it when | measured |"
    yield "|---|---|---|---|"
    for file in files:
        text = file.read_text(encoding="utf-8")
        what, when = _comment(text)
        result = measured(yaml.safe_load(text))
        yield f"| [{file.stem}](#{file.stem}) | {what} | {when} | {result} |"


def _comment(text: str) -> tuple[str, str]:
    """Return what a recipe does and when to take it, from its leading comment."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    whole = " ".join(lines)
    what, _, rest = whole.partition(" When: ")
    for word in (" Paper", " Method:"):
        rest = rest.split(word)[0]
    return what, rest


def _online(recipe: dict[str, Any]) -> str:
    setting = f"row final {recipe['budget']}"
    keys = ("model", "setting", "seed", "text", "windows", "length")
    found = [row for row in rows.newest("online", *keys) if row["setting"] == setting]
    if not found:
        return "-"
    row = found[-1]
    return (
        f"{row['perplexity']:.2f} (all tokens), {row['decode_perplexity']:.2f} (decode)"
    )


def _offline(recipe: dict[str, Any]) -> str:
    wanted = _settings(recipe)
    found = [
        row
        for row in rows.newest("pruning", "setting", "seed", "text")
        if row["seed"] == 0 and _settings(json.loads(row["config"])) == wanted
    ]
    if not found:
        return "-"
    value = found[-1]["perplexity"]
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def _settings(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what a run is made of, without defaults."""
    made = {**_DEFAULTS, **fields}
    for key in _NOT_COMPARED:
        made.pop(key, None)
    for key, kind in _OPTIONS.items():
        if key in made:
            made[key] = _other_than_default(made[kind], made[key])
            if not made[key]:
                del made[key]
    return made


def _other_than_default(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options without those that a recipe writes out as they are anyway."""
    defaults = {option.name: option.default for option in find_method(method).options}
    return {
        name: value
        for name, value in options.items()
        if defaults[name] not in (str(value), f"{value}.0")
    }


def _files() -> Iterator[str]:
    for file in (
        *sorted(RECIPES.glob("online/*.yaml")),
        *sorted(RECIPES.glob("*.yaml")),
    ):
        text = file.read_text(encoding="utf-8").rstrip()
        yield f"### {file.stem}\n\n```yaml\n{text}\n```\n"
