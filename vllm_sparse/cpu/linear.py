"""``CpuLinear``: one layer's weight copies and kernels, and the choice of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from nmsparse.ops.linear.planned import SparseLinearPlan
from nmsparse.ops.online.planned import OnlinePlan
from nmsparse.ops.sparsify.cpu import sparsify_cpu
from vllm_sparse.cpu.products import Product, products
from vllm_sparse.cpu.weights import Weights
from vllm_sparse.phases import selected_tokens
from vllm_sparse.table import TOKENS, Times, choose

if TYPE_CHECKING:
    from vllm_sparse.owned import Selection
    from vllm_sparse.phases import TokenPhases

    Plan = SparseLinearPlan | OnlinePlan

GATHER, PER_TOKEN, MASKED = "gather", "per_token", "masked"
_ELEMENTS, _NONZEROS = 0, 1


class CpuLinear:
    """One linear layer of this process.

    Args:
        weights: our copies of the weight.
        stock: vLLM's own product; None if its copy was dropped.
        in_features: K of this rank.
        selection: what is sparsified; None for a dense input.
        phases: phases of the step's tokens.
        always: use our kernels for few tokens without having measured them.
        fast: run steps dense that no sparse kernel wins at.

    Attributes:
        dtype: type of weight and activations.
        calls: how often each way ran.
        times: the measured table; empty until measured.
    """

    def __init__(
        self,
        weights: Weights,
        stock: Product | None,
        *,
        in_features: int,
        selection: Selection | None,
        phases: TokenPhases,
        always: bool = False,
        fast: bool = False,
    ) -> None:
        self.in_features = in_features
        self.selection = selection
        self.calls: Counter[str] = Counter()
        self.times: Times = {}
        self._phases = phases
        self._always = always
        self._fast = fast
        self._chosen: dict[tuple[int, bool], str] = {}
        self.set_weights(weights, stock)

    def set_weights(self, weights: Weights, stock: Product | None) -> None:
        """Use these copies from now on: a model's weights can be loaded again."""
        self.weights = weights
        self.products = products(weights, stock)
        self.first = next(iter(self.products))
        self._chosen.clear()
        if weights.rows is not None:
            self.dtype, self._outputs = weights.rows.dtype, weights.rows.shape[1]
        elif weights.packed is not None:
            self.dtype, self._outputs = weights.packed.dtype, weights.packed.shape[0]
        self._plans: dict[tuple[int, bool], Plan] = {}

    @property
    def key(self) -> str:
        """Layers of one key share a measured table."""
        weights = self.weights
        form = "rows"
        if weights.packed is not None:
            form = f"packed {round(weights.sparsity, 1)}"
        chosen = str(self.selection.pattern) if self.selection else "dense"
        if self.selection is not None and self.selection.treatment is not None:
            chosen += f" {self.selection.treatment.label}"
        ways = "+".join(self.products)
        return f"{self.in_features}x{self._outputs} {self.dtype} {form} {chosen} {ways}"

    def explain(self) -> dict[str, str]:
        """Return the way of every number of tokens, with its gain over the first."""
        sparse = self.selection is not None
        found: dict[str, str] = {}
        for tokens in TOKENS:
            way = self.way(tokens, sparse=sparse)
            seconds = self.times.get(tokens, {})
            gain = ""
            if way in seconds and self.first in seconds:
                gain = f" {seconds[self.first] / seconds[way]:.2f}x"
            found[str(tokens)] = way + gain
        return found

    def describe(self) -> str:
        """Return what runs the layer, for people to read."""
        packed = self.weights.packed is not None
        held = "bits and values" if packed else "K-major rows"
        return f"our {held} for few tokens, {self.first} for many"

    # -- choice ---------------------------------------------------------------------

    def set_times(self, times: Times) -> None:
        """Use a measured table from now on."""
        self.times = times
        self._chosen.clear()

    def way(self, tokens: int, *, sparse: bool) -> str:
        """Return how ``tokens`` tokens run: a way of ``ways``, or a product's name."""
        key = (min(tokens, TOKENS[-1] + 1), sparse)
        found = self._chosen.get(key)
        if found is None:
            found = self._chosen[key] = self._choose(*key)
        return found

    def _choose(self, tokens: int, sparse: bool) -> str:
        product = (
            self._ours(tokens)
            if self._always
            else choose(self.times, self.first, tokens, list(self.products))
        )
        if not sparse:
            return product
        # What runs where no sparse kernel wins.
        other = product if self._fast else f"{MASKED}+{product}"
        if self.weights.rows is None or tokens > TOKENS[-1]:
            return other
        if self._always:
            return GATHER
        return choose(self.times, other, tokens, [other, GATHER, PER_TOKEN])

    def _ours(self, tokens: int) -> str:
        """Return the last product, which is ours, for few tokens."""
        return self.first if tokens > TOKENS[-1] else list(self.products)[-1]

    def timed(self, x: torch.Tensor) -> dict[str, Callable[[], object]]:
        """Return every way as a call on ``x`` (``[T, K]``), for measuring."""
        calls: dict[str, Callable[[], object]] = {
            name: partial(product, x, None) for name, product in self.products.items()
        }
        if self.selection is not None:
            for name in list(calls):
                calls[f"{MASKED}+{name}"] = partial(self._masked, x, None, name)
            if self.weights.rows is not None:
                calls[GATHER] = partial(self._gather, x, None)
                if len(x) > 1:
                    calls[PER_TOKEN] = partial(self._gather, x, None, per_token=True)
        return calls

    # -- execution ------------------------------------------------------------------

    def run(
        self, x: torch.Tensor, bias: torch.Tensor | None, counters: torch.Tensor
    ) -> torch.Tensor:
        """Return ``[T, O]`` for ``x`` (``[T, K]``), sparsified as the step says.

        Args:
            x: the activation.
            bias: ``[O]`` or None.
            counters: ``[2]`` int64, updated in place: elements and non-zeros of real
                tokens that were sparsified.
        """
        if not len(x):
            return x.new_empty(0, self._outputs)
        selected = self._selected(len(x))
        if selected is None and not self._fast:
            return self._mixed(x, bias, counters)
        way = self._way(x, sparse=bool(selected))
        self.calls[way] += 1
        if way in self.products:  # dense
            return self.products[way](x, bias)
        nonzeros = self._counter(x, counters)
        if way.startswith(MASKED):
            return self._masked(x, bias, way[len(MASKED) + 1 :], nonzeros)
        return self._gather(x, bias, nonzeros, per_token=way == PER_TOKEN)

    def _way(self, x: torch.Tensor, *, sparse: bool) -> str:
        if x.dtype is self.dtype:
            return self.way(len(x), sparse=sparse)
        # Our kernels would read the weight in the type of x: leave the answer to torch.
        return f"{MASKED}+{self.first}" if sparse and not self._fast else self.first

    def _selected(self, tokens: int) -> bool | None:
        """Return whether all tokens are sparsified, none, or (None) some."""
        if self.selection is None:
            return False
        return self._phases.selects(tokens, self.selection.phase)

    def _counter(self, x: torch.Tensor, counters: torch.Tensor) -> torch.Tensor | None:
        """Count the elements of real tokens; return where their non-zeros go."""
        assert self.selection is not None
        real = self._phases.real(len(x))
        if not real:
            return None
        # Through numpy: tensor arithmetic on one number costs microseconds.
        counters.numpy()[_ELEMENTS] += real * self.in_features
        nonzeros = counters[_NONZEROS:]
        if real == len(x):
            return nonzeros
        # A padded step (none in eager mode): the product's kernel would count padding.
        if self.selection.treatment is None:
            sparsify_cpu(x[:real], self.selection.pattern, "magnitude", nonzeros)
        else:
            self.selection.treatment.sparsify(x[:real], nonzeros)
        return None

    def _gather(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        nonzeros: torch.Tensor | None = None,
        *,
        per_token: bool = False,
    ) -> torch.Tensor:
        plan = self._plans.get((len(x), per_token))
        if plan is None:
            assert self.selection is not None
            assert self.weights.rows is not None
            plan = make_plan(self.weights.rows, self.selection, len(x), per_token)
            self._plans[len(x), per_token] = plan
        return plan(x, bias, nonzeros)

    def _masked(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        product: str,
        nonzeros: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert self.selection is not None
        treatment = self.selection.treatment
        if treatment is not None:
            found = treatment.sparsify(x, nonzeros)
            y = self.products[product](found.values, bias)
            return treatment.finish(y, bias, found)
        sparse = sparsify_cpu(x, self.selection.pattern, "magnitude", nonzeros)
        return self.products[product](sparse, bias)

    def _mixed(
        self, x: torch.Tensor, bias: torch.Tensor | None, counters: torch.Tensor
    ) -> torch.Tensor:
        """Sparsify the tokens of the phase, and multiply all of them."""
        assert self.selection is not None
        way = self._way(x, sparse=False)
        self.calls[f"{MASKED}+{way}"] += 1
        codes, treatment = self._phases.codes[: len(x)], self.selection.treatment
        chosen = selected_tokens(codes, self.selection.phase)
        nonzeros = counters[_NONZEROS:]
        part = x[chosen]
        counters.numpy()[_ELEMENTS] += part.numel()
        x = x.clone()
        if treatment is None:
            pattern = self.selection.pattern
            x[chosen] = sparsify_cpu(part, pattern, "magnitude", nonzeros)
            return self.products[way](x, bias)
        found = treatment.sparsify(part, nonzeros)
        x[chosen] = found.values
        y = self.products[way](x, bias)
        if treatment.finishes:
            y[chosen] = treatment.finish(y[chosen], bias, found)
        return y


def make_plan(
    rows: torch.Tensor, selection: Selection, tokens: int, per_token: bool
) -> Plan:
    """Return the prepared call of a layer for a number of tokens.

    Args:
        rows: ``[K, O]``, K-major.
        selection: what is sparsified.
        tokens: T.
        per_token: walk every token's rows by themselves.
    """
    treatment = selection.treatment
    if treatment is None:
        return SparseLinearPlan(rows, selection.pattern, tokens, per_token=per_token)
    return OnlinePlan(
        rows,
        treatment.online,
        tokens,
        constants=treatment.constants,
        per_token=per_token,
    )
