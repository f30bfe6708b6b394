"""``GpuLinear``: what one layer holds beside its weight, and how its steps run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vllm_sparse.gpu.choice import (
    DENSE,
    NEVER,
    Plan,
    choose_plan,
    choose_product,
    first_way,
)
from vllm_sparse.gpu.weights import Held
from vllm_sparse.table import TOKENS, Times

_NO_CALLS: Mapping[str, int] = MappingProxyType({})


class GpuLinear:
    """One linear layer of this process.

    Args:
        weights: what is held beside the weight.
        sparse: whether its input is sparsified.
        always: gather few tokens without having measured it.
        shared: whether tokens may share a list of channels.
        dense_above: steps of more tokens run dense; ``NEVER``: all are sparse.
        times: the measured table; empty if not measured.
    """

    def __init__(
        self,
        weights: Held,
        *,
        sparse: bool,
        always: bool = False,
        shared: bool = False,
        dense_above: int = NEVER,
        times: Times | None = None,
    ) -> None:
        self.weights = weights
        self.sparse = sparse
        self.always = always
        self.shared = shared
        self.dense_above = dense_above
        self.times: Times = times or {}
        self._plans: dict[int, Plan] = {}
        self._dense = False

    def use_dense(self) -> None:
        """Run every step by vLLM's product from now on: kernels do not run here."""
        self._dense = True
        self.weights.packed = None
        self._plans.clear()

    @property
    def calls(self) -> Mapping[str, int]:
        """Nothing: a CUDA graph replays a step without telling anybody."""
        return _NO_CALLS

    def plan(self, tokens: int) -> Plan:
        """Return how a step of ``tokens`` rows runs, padding included."""
        tokens = min(tokens, TOKENS[-1] + 1)
        found = self._plans.get(tokens)
        if found is None:
            found = self._plans[tokens] = self._choose(tokens)
        return found

    def _choose(self, tokens: int) -> Plan:
        if self._dense:
            return Plan(DENSE)
        if not self.sparse:
            return choose_product(self.times, tokens)
        return choose_plan(
            self.times,
            tokens,
            always=self.always,
            shared=self.shared,
            dense_above=self.dense_above,
        )

    @property
    def first(self) -> str:
        """The way of steps with many tokens."""
        if self._dense:
            return DENSE
        return first_way(self.dense_above if self.sparse else 0).way

    def explain(self) -> dict[str, str]:
        """Return the way of every number of tokens, with its gain over the first."""
        found: dict[str, str] = {}
        for tokens in TOKENS:
            plan = self.plan(tokens)
            seconds = self.times.get(tokens, {})
            gain = ""
            if str(plan) in seconds and self.first in seconds:
                gain = f" {seconds[self.first] / seconds[str(plan)]:.2f}x"
            found[str(tokens)] = plan.way + gain
        return found

    def describe(self) -> str:
        """Return what runs the layer, for people to read."""
        if self._dense:
            return "vLLM's product, dense: our kernels do not run on this GPU"
        if not self.sparse:
            return f"our bits and values for few tokens, {self.first} for many"
        held = "K-major rows"
        if self.weights.packed is not None:
            held += " or bits and values"
        return (
            f"our {held} for few tokens, {self.first} for many; calls are not counted "
            "on a GPU"
        )
