"""Do the numbers of ``results.json`` agree with each other and with the budget?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from offline_prune.report.layers import LayerResult
from offline_prune.report.results import RESULTS_NAME, Results

_TOLERANCE = 1e-9


def count_problems(results: Results) -> list[str]:
    """Return one sentence for each number that does not follow from the others."""
    return [
        *_patterns(results.layers),
        *_blocks(results),
        *_budget(results),
    ]


def _patterns(layers: list[LayerResult]) -> Iterator[str]:
    """Check that N:M layers lost exactly M - N of every M."""
    for layer in layers:
        pattern = layer.nm
        if pattern is None:
            continue
        expected = layer.size * (pattern.m - pattern.n) // pattern.m
        if layer.removed != expected:
            yield (
                f"{layer.name}: {RESULTS_NAME} says {layer.removed:,} weights removed. "
                f"Expected {expected:,} of {layer.size:,} with {pattern}."
            )


def _blocks(results: Results) -> Iterator[str]:
    """Check the sparsity of every block against its layers."""
    members: dict[int, list[LayerResult]] = defaultdict(list)
    for layer in results.layers:
        members[layer.block].append(layer)
    listed = {block.index for block in results.blocks}
    for index in sorted(set(members) - listed):
        yield (
            f"{RESULTS_NAME} has layers of block {index} (first: "
            f"{members[index][0].name}), but no block {index}. Expected one entry a "
            "block."
        )
    for block in results.blocks:
        layers = members.get(block.index, [])
        removed = sum(layer.removed for layer in layers)
        size = sum(layer.size for layer in layers)
        expected = removed / size if size else 0.0
        if abs(block.sparsity - expected) > _TOLERANCE:
            yield (
                f"{RESULTS_NAME} gives block {block.index} the sparsity "
                f"{block.sparsity}. Expected {expected}, by its {len(layers)} layers."
            )


def _budget(results: Results) -> Iterator[str]:
    """Check the budget against the layers, and whether it was met."""
    budget = results.budget
    removed = sum(layer.removed for layer in results.layers)
    total = sum(layer.size for layer in results.layers)
    if (budget.removed, budget.total) != (removed, total):
        yield (
            f"{RESULTS_NAME} gives a budget of {budget.removed:,} removed of "
            f"{budget.total:,} weights. Expected {removed:,} of {total:,}, the sum of "
            "its layers."
        )
        return
    missed = abs(removed - budget.target * total)
    if missed > _granularity(results.layers):
        yield (
            f"The budget was missed: {budget.achieved:.6%} of the weights are removed. "
            f"Expected {budget.target:.6%}, to the nearest weight or pattern."
        )


def _granularity(layers: list[LayerResult]) -> float:
    """Return how many weights the nearest possible count may be away from a target.

    One weight, or, where blocks have N of M each, one N of the largest block.
    """
    steps: dict[int, float] = defaultdict(float)
    for layer in layers:
        if layer.nm is not None:
            steps[layer.block] += layer.size / layer.nm.m
    return max([1.0, *steps.values()])
