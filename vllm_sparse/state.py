"""What the plugin knows about one linear layer: its rule, its numbers, its counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from nmsparse.pattern import Pattern
from vllm_sparse.custom_ops import ELEMENTS, NONZEROS
from vllm_sparse.describe import WeightsRead
from vllm_sparse.work import Work

if TYPE_CHECKING:
    from vllm_sparse.method import SparseLinearMethod
    from vllm_sparse.owned import OwnedLinear
    from vllm_sparse.phases import Steps


class LayerReport(TypedDict):
    """One layer in ``GET /sparsity``: plain values, they cross process borders."""

    name: str
    kind: str
    layer_class: str
    in_features: int
    out_features: int
    pattern: str | None
    criterion: str | None
    mitigation: list[str]
    parameters: dict[str, str]
    backend: str
    reason: str
    weight_pattern: str | None
    k_sharded: bool
    elements: int
    nonzeros: int
    density: float | None
    ways: dict[str, str]
    calls: dict[str, int]
    weight_sparsity: float | None
    extra_bytes: int
    extra_weights: int
    fallbacks: dict[str, int]
    bytes_read: int | None
    bytes_skipped: int


def _none() -> None:
    return None


@dataclass
class LayerState:
    """One linear layer of this rank.

    Attributes:
        name: full name in vLLM's model.
        layer_class: class of the layer, as vLLM names it.
        in_features: K of the whole layer.
        out_features: O of the whole layer, over all ranks.
        pattern: activation pattern, None if the input stays dense.
        criterion: score that ranks channels, None if dense.
        backend: what executes it: ``dense`` or the sparsify backend.
        reason: why.
        weight_pattern: what the pruner recorded for the weights.
        k_sharded: whether K is split over tensor-parallel ranks.
        counters: ``[2]`` int64 on the device, elements and non-zeros; None if dense.
        mitigation: what reduces the error of the selection.
        parameters: name of a fitted tensor to where it comes from: the parameters
            file, or ``weight``.
        extra_weights: elements that are read beside the weight's (low rank), of the
            whole layer.
        fallback: why vLLM multiplies by the whole weight at every call of a layer with
            a pattern; None if it does not.
        find_method: gives what sparsifies the input of vLLM's product then.
        find_linear: gives the layer's own kernels and weight copies; None if vLLM runs
            it, or when the engine is gone.
    """

    name: str
    layer_class: str
    in_features: int
    out_features: int
    pattern: Pattern | None
    criterion: str | None
    backend: str
    reason: str
    weight_pattern: str | None
    k_sharded: bool
    counters: torch.Tensor | None
    mitigation: tuple[str, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)
    extra_weights: int = 0
    fallback: str | None = None
    find_method: Callable[[], SparseLinearMethod | None] = _none
    find_linear: Callable[[], OwnedLinear | None] = _none

    @property
    def linear(self) -> OwnedLinear | None:
        """The layer's own kernels and weight copies; None if vLLM runs it."""
        return self.find_linear()

    @property
    def read(self) -> WeightsRead | None:
        """What of the weight a sparsified token reads; None if dense."""
        if self.pattern is None:
            return None
        elements = self.in_features * self.out_features
        return WeightsRead(elements, self.pattern.density, self.extra_weights)

    @property
    def kind(self) -> str:
        """Metric label: the role in a block (``qkv``, ``o``, ``gate_up``, ``down``)."""
        return self.name.rpartition(".")[2].removesuffix("_proj")

    def work(self, steps: Sequence[Steps]) -> Work | None:
        """Return what the layer did in these steps; None if it is not sparse."""
        linear = self.linear
        if linear is not None:
            return linear.work(steps)
        if self.pattern is None:
            return None
        work, method = Work(), self.find_method()
        size = 0 if method is None else method.weight_bytes
        for step in steps:
            dense = step.number * size
            reason = None if step.selected is False else self.fallback
            work.add(step.number, dense=dense, read=dense, reason=reason)
        return work

    def reset(self) -> None:
        """Count from zero again."""
        if self.counters is not None:
            self.counters.zero_()
        linear = self.linear
        if linear is not None:
            linear.reset()


def layer_report(
    state: LayerState, counts: list[int], steps: Sequence[Steps]
) -> LayerReport:
    """Describe a layer.

    Args:
        state: the layer.
        counts: its counter values, read from the device.
        steps: that the engine has run.
    """
    elements, nonzeros = counts[ELEMENTS], counts[NONZEROS]
    linear, work = state.linear, state.work(steps)
    return LayerReport(
        name=state.name,
        kind=state.kind,
        layer_class=state.layer_class,
        in_features=state.in_features,
        out_features=state.out_features,
        pattern=None if state.pattern is None else str(state.pattern),
        criterion=state.criterion,
        mitigation=list(state.mitigation),
        parameters=dict(state.parameters),
        backend=state.backend,
        reason=state.reason,
        weight_pattern=state.weight_pattern,
        k_sharded=state.k_sharded,
        elements=elements,
        nonzeros=nonzeros,
        density=nonzeros / elements if elements else None,
        ways=linear.explain() if linear else {},
        calls=dict(work.calls) if work else {},
        weight_sparsity=linear.weights.sparsity if linear else None,
        extra_bytes=linear.weights.nbytes if linear else 0,
        extra_weights=state.extra_weights,
        fallbacks=dict(work.fallbacks) if work else {},
        bytes_read=work.read if work else None,
        bytes_skipped=work.skipped if work else 0,
    )


def read_counters(states: list[LayerState]) -> list[list[int]]:
    """Read all counters in one device-to-host copy; zeros for dense layers."""
    counted = [s.counters for s in states if s.counters is not None]
    values: list[list[int]] = torch.stack(counted).tolist() if counted else []
    remaining: Any = iter(values)
    return [[0, 0] if s.counters is None else next(remaining) for s in states]
