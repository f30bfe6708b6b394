"""``report.md``: what was pruned, how well, how long it took, how to do it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from offline_prune.report.formatting import (
    duration,
    folded,
    number,
    percent,
    size,
    span,
    table,
)
from offline_prune.report.pictures import Picture
from offline_prune.report.quality import quality_tables
from offline_prune.report.results import RESULTS_NAME, RUN_NAME, Results
from offline_prune.report.summary import (
    by_kind,
    mean_error,
    method_parts,
    pattern_text,
)

REPORT_NAME = "report.md"
# A table of more rows is no table for people; results.json has them all.
MAX_ROWS = 1000


def report(results: Results, pictures: Sequence[Picture] = ()) -> str:
    """Return the report.

    Args:
        results: of the run.
        pictures: that lie in ``figures/`` beside it.
    """
    parts = [
        f"# Pruning report: {results.model.name}",
        f"Made {results.date}, from `{RESULTS_NAME}` and `{RUN_NAME}` beside it.",
        summary_table(results),
        *_notes(results),
        "## Quality",
        quality_tables(results.evaluation),
        "## Where the zeros are",
        kinds_table(results),
        *(picture.markdown for picture in pictures),
        _blocks(results),
        *_layers(results),
        "## Size",
        size_text(results),
        *_time(results),
        "## Reproduce",
        reproduction(results),
    ]
    return "\n\n".join(parts) + "\n"


def summary_table(results: Results) -> str:
    """Return the table at the top: model, method, budget, data."""
    model, budget = results.model, results.budget
    layers = len(results.layers)
    removed = f"{budget.removed:,} of {budget.total:,} weights in {layers:,} layers"
    rows = [
        ("Model", f"{model.name} ({model.architecture}, {model.dtype})"),
        ("Parameters", f"{model.parameters:,}"),
        ("Pattern", pattern_text(results.layers)),
        ("Removed", f"{percent(budget.achieved, 4)}: {removed}"),
        ("Asked for", percent(budget.target, 4)),
    ]
    rows += [(k.capitalize(), v) for k, v in method_parts(results.config).items()]
    data = results.calibration
    if data is None:
        rows.append(("Calibration", "none needed"))
    else:
        text = f"{data.source}, {data.windows:,} windows, {data.tokens:,} tokens"
        rows.append(("Calibration", text))
    return table(("", ""), rows, left=2)


def kinds_table(results: Results) -> str:
    """Return sparsity and error by kind of layer."""
    rows = [
        (
            kind.kind,
            f"{kind.layers:,}",
            percent(kind.sparsity),
            span(kind.lowest, kind.highest),
            number(kind.relative_error, 3),
        )
        for kind in by_kind(results.layers)
    ]
    heads = ("Kind", "Layers", "Removed", "From layer to layer", "Relative error")
    return table(heads, rows) + (
        "\n\nRelative error: change of the layer's output on calibration data, root of "
        "the mean square, as a share of the dense output."
    )


def size_text(results: Results) -> str:
    """Return the sizes, and that zeros alone make no file smaller."""
    sizes = results.sizes
    if sizes is None:
        return "The files were not measured."
    rows = [("dense", size(sizes.dense_bytes), percent(1.0, 0))]
    saved = "pruned, zeros stored" if sizes.saved_format == "dense" else "packed"
    dense = max(1, sizes.dense_bytes)
    share = percent(sizes.saved_bytes / dense, 0)
    rows.append((f"{saved} (this folder)", size(sizes.saved_bytes), share))
    text = ""
    if sizes.saved_format == "dense":
        if sizes.packed_bytes is not None:
            share = percent(sizes.packed_bytes / dense, 0)
            rows.append(("packed, computed", size(sizes.packed_bytes), share))
        text = (
            "\n\nZeros are stored like other numbers here, so that every tool opens the"
            " folder. `offline-prune pack` stores them as bits."
        )
    return table(("Weight files", "Bytes", "Of dense"), rows) + text


def reproduction(results: Results) -> str:
    """Return command, recipe, versions and hashes."""
    parts = []
    if results.command:
        parts.append(f"```console\n$ {results.command}\n```")
    recipe = yaml.safe_dump(_given(results.config), sort_keys=False, allow_unicode=True)
    parts.append(f"The same as a recipe:\n\n```yaml\n{recipe.rstrip()}\n```")
    versions = [f"{name} {version}" for name, version in results.versions.items()]
    if versions:
        parts.append(f"Versions: {', '.join(versions)}.")
    if results.hardware:
        parts.append(f"Hardware: {results.hardware}.")
    hashes = [(f"dense {name}", value) for name, value in results.model.files.items()]
    if results.calibration is not None:
        hashes.append(("calibration tokens", results.calibration.sha256))
    hashes += [(f"saved {name}", value) for name, value in results.files.items()]
    if hashes:
        rows = [(name, f"`{value}`") for name, value in hashes]
        parts.append(folded("SHA-256", table(("What", "Hash"), rows, left=2)))
    return "\n\n".join(parts)


def _given(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without nulls and empty options: those are defaults."""
    found = {
        key: _given(value) if isinstance(value, dict) else value
        for key, value in config.items()
    }
    return {k: v for k, v in found.items() if v is not None and v not in ({}, [])}


def _notes(results: Results) -> list[str]:
    """Return what a user of the model should know."""
    if not results.notes:
        return []
    return ["## Notes", "\n".join(f"- {note}" for note in results.notes)]


def _blocks(results: Results) -> str:
    """Return the table of blocks, folded."""
    measures = list(
        dict.fromkeys(k for block in results.blocks for k in block.measures)
    )
    errors = {
        block.index: mean_error(x for x in results.layers if x.block == block.index)
        for block in results.blocks
    }
    rows = [
        (
            str(block.index),
            percent(block.sparsity),
            number(errors[block.index], 3),
            *(number(block.measures.get(name)) for name in measures),
        )
        for block in results.blocks
    ]
    heads = ("Block", "Removed", "Relative error", *measures)
    return folded(f"All {len(rows)} blocks", table(heads, rows))


def _layers(results: Results) -> list[str]:
    """Return the table of layers, folded, or where to find it."""
    count = len(results.layers)
    if count > MAX_ROWS:
        return [f"The {count:,} layers are listed in `{RESULTS_NAME}`."]
    rows = [
        (
            layer.name,
            f"{layer.out_features} x {layer.in_features}",
            layer.pattern or "unstructured",
            percent(layer.sparsity),
            f"{layer.removed:,}",
            number(layer.relative_error, 3),
        )
        for layer in results.layers
    ]
    heads = ("Layer", "O x K", "Pattern", "Removed", "Weights", "Relative error")
    return [folded(f"All {count} layers", table(heads, rows))]


def _time(results: Results) -> list[str]:
    """Return seconds a stage and the peak of memory, if measured."""
    rows = [(stage, duration(seconds)) for stage, seconds in results.time.items()]
    if len(rows) > 1:
        rows.append(("all", duration(sum(results.time.values()))))
    if results.peak_memory_bytes is not None:
        rows.append(("peak memory", size(results.peak_memory_bytes)))
    return ["## Time and memory", table(("Stage", ""), rows)] if rows else []
