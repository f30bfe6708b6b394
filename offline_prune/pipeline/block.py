"""Prune the layers of one block that is in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from offline_prune.errors import InputError
from offline_prune.pipeline.layers import Layer
from offline_prune.pipeline.methods import Methods
from offline_prune.pipeline.slots import BiasSlots, add_bias
from offline_prune.scorers.base import Pruned
from offline_prune.scorers.cholesky import SingularError
from offline_prune.selection import LayerTarget
from offline_prune.statistics.inputs import InputStatistics


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one layer.

    Attributes:
        name: of the layer.
        removed: number of weights the scorer removed.
        zeros: number of zeros in the saved weight.
        fallback: why another score was used, None if it was not.
        relative_error: of the layer's output on a sample of its inputs, None without
            data.
    """

    name: str
    removed: int
    zeros: int
    fallback: str | None
    relative_error: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


@dataclass(slots=True)
class PrunedBlock:
    """A block's outcomes and the tensors that changed, by their names in the files."""

    outcomes: list[Outcome]
    tensors: dict[str, torch.Tensor]
    seconds: dict[str, float]


def prune_block(
    layers: Sequence[Layer],
    statistics: Mapping[str, InputStatistics],
    *,
    targets: Mapping[str, LayerTarget],
    methods: Methods,
    slots: BiasSlots | None,
) -> PrunedBlock:
    """Prune every layer of a block, in place.

    Args:
        layers: of the block, loaded.
        statistics: of every layer's input; unused if no method needs data.
        targets: what every layer loses.
        methods: scorer, compensation and channel method.
        slots: where biases can be; None if no method makes any.

    Returns:
        What happened, and copies of the changed tensors in the layout of the files.
    """
    done = PrunedBlock([], {}, {})
    for layer in layers:
        start = time.perf_counter()
        found = statistics.get(layer.name) if methods.needs else None
        outcome, bias = _prune_layer(layer, found, targets[layer.name], methods, slots)
        done.outcomes.append(outcome)
        done.tensors[layer.tensor] = layer.stored()
        if bias is not None:
            name = layer.tensor.removesuffix(".weight") + ".bias"
            done.tensors[name] = bias.contiguous().clone()
        done.seconds[layer.name] = time.perf_counter() - start
    return done


def _prune_layer(
    layer: Layer,
    statistics: InputStatistics | None,
    target: LayerTarget,
    methods: Methods,
    slots: BiasSlots | None,
) -> tuple[Outcome, torch.Tensor | None]:
    view = layer.view()
    dense = view.float()
    data = statistics is not None and statistics.tokens > 0
    if methods.channels is not None and target.removed and data:
        scores = methods.scorer.scores(dense, statistics)
        rows = methods.channels.row_targets(
            dense, scores, statistics, removed=target.removed
        )
        target = LayerTarget.per_row(rows)
    try:
        pruned: Pruned = methods.scorer.prune(dense, statistics, target)
    except SingularError as error:
        raise InputError(f"{layer.name}: {error}") from None
    weight = pruned.weight
    bias = None
    for scale in methods.scales:
        if data or not scale.required:
            weight = scale.apply(dense, weight, pruned.keep, statistics)
    if not bool(weight.isfinite().all()):
        raise InputError(
            f"{layer.name}: {methods.scorer.name} gave weights that are not finite. "
            "Expected finite ones: more calibration data, or another scorer."
        )
    view.copy_(weight.to(view.dtype))
    saved = view.float()
    if not bool(saved.isfinite().all()):
        raise InputError(
            f"{layer.name}: {methods.scorer.name} gave weights too large for "
            f"{str(view.dtype).removeprefix('torch.')}. Expected weights that fit: "
            "convert the model to bfloat16 first, or choose another scorer."
        )
    if methods.shift is not None and slots is not None and slots.fits(layer):
        change = torch.zeros(layer.out_features)
        if data:
            change = methods.shift.bias(dense, saved, statistics)
        bias = add_bias(layer, change)
    outcome = Outcome(
        name=layer.name,
        removed=int((~pruned.keep).sum()),
        zeros=int((view == 0).sum()),
        fallback=pruned.fallback,
        relative_error=_error(dense, saved, statistics) if data else None,
    )
    return outcome, bias


def _error(
    dense: torch.Tensor, saved: torch.Tensor, statistics: InputStatistics | None
) -> float | None:
    """Return ``||X (W - W')^T|| / ||X W^T||`` on the sample."""
    sample = statistics.sample if statistics is not None else None
    if sample is None or not len(sample):
        return None
    sample = sample.to(dense.device)
    whole = float((sample @ dense.t()).norm())
    return float((sample @ (dense - saved).t()).norm()) / whole if whole else 0.0
