"""``GpuLinear``: what one layer holds beside its weight, and how its steps run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm_sparse.gpu.choice import (
    DENSE,
    GATHER,
    MASKED_PACKED,
    NEVER,
    PACKED,
    SHARED,
    Plan,
    choose_plan,
    choose_product,
    first_way,
)
from vllm_sparse.gpu.weights import Held
from vllm_sparse.table import TOKENS, Times, gain
from vllm_sparse.work import DENSE_FASTER, MANY_TOKENS, MIXED_STEP, NO_KERNEL, Work

if TYPE_CHECKING:
    from vllm_sparse.phases import Steps


class GpuLinear:
    """One linear layer of this process.

    Args:
        weights: what is held beside the weight.
        sparse: whether its input is sparsified.
        always: gather few tokens without having measured it.
        shared: whether tokens may share a list of channels.
        dense_above: steps of more tokens run dense; ``NEVER``: all are sparse.
        times: the measured table; empty if not measured.
        weight_bytes: of the weight of this rank.
        density: share of channels that a sparsified token keeps.
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
        weight_bytes: int = 0,
        density: float = 1.0,
    ) -> None:
        self.weights = weights
        self.sparse = sparse
        self.always = always
        self.shared = shared
        self.dense_above = dense_above
        self.times: Times = times or {}
        self._weight_bytes = weight_bytes
        self._density = density
        self._plans: dict[int, Plan] = {}
        self._dense = False

    def use_dense(self) -> None:
        """Run every step by vLLM's product from now on: kernels do not run here."""
        self._dense = True
        self.weights.packed = None
        self._plans.clear()

    def work(self, steps: Sequence[Steps] = ()) -> Work:
        """Return what calls did, one in each of these steps.

        A CUDA graph replays a step without telling anybody, but the plan of a step
        follows from its rows.
        """
        work = Work()
        for rows, selected, number in steps:
            plan = self.plan(rows)
            dense = number * self._weight_bytes
            work.add(
                number,
                dense=dense,
                read=number * self._read(plan, rows, selected),
                way=plan.way,
                reason=self._reason(plan, rows, selected),
            )
        return work

    def reset(self) -> None:
        """Do nothing: there are no counters here."""

    def _read(self, plan: Plan, rows: int, selected: bool | None) -> int:
        """Return the bytes that a call reads, at most.

        Tokens with lists of their own are taken to keep different channels. A token
        that is not sparsified has a list of all.
        """
        if plan.way in (PACKED, MASKED_PACKED) and self.weights.packed is not None:
            return self.weights.packed.nbytes
        lists = {GATHER: rows, SHARED: 1}.get(plan.way)
        if lists is None or selected is not True:
            return self._weight_bytes
        return round(min(1.0, lists * self._density) * self._weight_bytes)

    def _reason(self, plan: Plan, rows: int, selected: bool | None) -> str | None:
        """Return why a call reads the whole weight; None if it need not read less."""
        held = self.weights.packed is not None
        wanted = held or (self.sparse and selected is not False)
        if not wanted or plan.way in (PACKED, MASKED_PACKED):
            return None
        if self._dense:
            return NO_KERNEL
        if rows > TOKENS[-1]:
            return MANY_TOKENS
        if selected is None:
            return MIXED_STEP
        return None if plan.way in (GATHER, SHARED) else DENSE_FASTER

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
            more = gain(self.times, tokens, str(plan), self.first)
            found[str(tokens)] = plan.way + more
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
        return f"our {held} for few tokens, {self.first} for many"
