"""``CpuLinear``: one layer's weight copies and kernels, and the choice of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from nmsparse.ops.sparsify.cpu import sparsify_cpu
from vllm_sparse.cpu.costs import Costs, Ledger
from vllm_sparse.cpu.plan import make_plan
from vllm_sparse.cpu.products import GATHER, MASKED, PER_TOKEN, Product, products
from vllm_sparse.cpu.weights import Weights
from vllm_sparse.phases import selected_tokens
from vllm_sparse.table import TOKENS, Times, choose, gain
from vllm_sparse.work import Outcome, Work

if TYPE_CHECKING:
    from vllm_sparse.cpu.plan import Plan
    from vllm_sparse.owned import Selection
    from vllm_sparse.phases import Steps, TokenPhases

_ELEMENTS, _NONZEROS = 0, 1
# Instead of a number of tokens: an input of another type than the weight.
_MISFIT = 0


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
        self.times: Times = {}
        self._phases = phases
        self._always = always
        self._fast = fast
        self._ledger = Ledger()
        self._counters: torch.Tensor | None = None
        self.set_weights(weights, stock)

    def set_weights(self, weights: Weights, stock: Product | None) -> None:
        """Use these copies from now on: a model's weights can be loaded again."""
        self.weights = weights
        self.products = products(weights, stock)
        self.first = next(iter(self.products))
        self._ledger.forget()
        if weights.rows is not None:
            self.dtype, self._outputs = weights.rows.dtype, weights.rows.shape[1]
        elif weights.packed is not None:
            self.dtype, self._outputs = weights.packed.dtype, weights.packed.shape[0]
        self._plans: dict[tuple[int, bool], Plan] = {}
        self._costs = Costs(
            (self.in_features, self._outputs),
            self.dtype,
            weights.packed,
            self.selection,
        )

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
        ways = {tokens: self.way(tokens, sparse=sparse) for tokens in TOKENS}
        return {str(t): w + gain(self.times, t, w, self.first) for t, w in ways.items()}

    def describe(self) -> str:
        """Return what runs the layer, for people to read."""
        held = "K-major rows" if self.weights.packed is None else "bits and values"
        return f"our {held} for few tokens, {self.first} for many"

    # -- choice ---------------------------------------------------------------------

    def set_times(self, times: Times) -> None:
        """Use a measured table from now on."""
        self.times = times
        self._ledger.forget()

    def way(self, tokens: int, *, sparse: bool) -> str:
        """Return how ``tokens`` tokens run: a way of ``ways``, or a product's name."""
        return self._outcome(tokens, sparse).way

    def outcome(self, x: torch.Tensor) -> Outcome:
        """Return how ``x`` (``[T, K]``) runs in this step, and how often that was."""
        rows = x.shape[0]
        # Our kernels would read the weight in the type of x: that is left to torch.
        tokens = rows if x.dtype is self.dtype else _MISFIT
        return self._outcome(tokens, self._selected(rows))

    def _outcome(self, tokens: int, selected: bool | None) -> Outcome:
        key = (min(tokens, TOKENS[-1] + 1), selected)
        found = self._ledger.outcomes.get(key)
        if found is None:
            found = self._costs.outcome(self._choose(*key), *key)
            self._ledger.outcomes[key] = found
        return found

    def _choose(self, tokens: int, selected: bool | None) -> str:
        if tokens == _MISFIT:
            product = self.first
        elif self._always:
            product = self._ours(tokens)
        else:
            product = choose(self.times, self.first, tokens, list(self.products))
        if selected is False:
            return product
        # What runs where no sparse kernel wins.
        other = product if self._fast else f"{MASKED}+{product}"
        if self.weights.rows is None or selected is None:
            return other
        if not _MISFIT < tokens <= TOKENS[-1]:
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
        tokens = x.shape[0]  # not len(x), which costs a microsecond
        if not tokens:
            return x.new_empty(0, self._outputs)
        outcome = self.outcome(x)
        way = outcome.way
        real = self._phases.real(tokens)
        if real:  # not in a dummy step
            outcome.calls += 1
        if way in self.products:  # dense
            return self.products[way](x, bias)
        product = way.removeprefix(f"{MASKED}+")
        if outcome.mixed:
            return self._mixed(x, bias, counters, product)
        nonzeros = self._counter(x, counters, real) if real else None
        if product != way:
            return self._masked(x, bias, product, nonzeros)
        plan = self._plan(tokens, per_token=way == PER_TOKEN)
        y = plan(x, bias, nonzeros)
        if real and outcome.row_bytes:
            outcome.rows += plan.rows_read.value
        return y

    def counts(self, x: torch.Tensor) -> bool:
        """Return whether a call is one of a step: not if that is a dummy, or empty."""
        return self._phases.real(x.shape[0]) > 0

    def work(self, steps: Sequence[Steps] = ()) -> Work:
        """Return what the calls did; ``steps`` are for those who cannot count them."""
        return self._ledger.work()

    def reset(self) -> None:
        """Count from zero again."""
        self._ledger.reset()

    @property
    def calls(self) -> Counter[str]:
        """How often each way ran."""
        return self.work().calls

    def _selected(self, tokens: int) -> bool | None:
        """Return whether all tokens are sparsified, none, or (None) some."""
        if self.selection is None:
            return False
        return self._phases.selects(tokens, self.selection.phase)

    def _counter(
        self, x: torch.Tensor, counters: torch.Tensor, real: int
    ) -> torch.Tensor | None:
        """Count the elements of real tokens; return where their non-zeros go."""
        assert self.selection is not None
        if counters is not self._counters:  # views cost microseconds, as arithmetic
            self._counters = counters
            self._counts = counters.numpy().data
            self._nonzeros = counters[_NONZEROS:]
        self._counts[_ELEMENTS] += real * self.in_features
        nonzeros = self._nonzeros
        if real == x.shape[0]:
            return nonzeros
        # A padded step (none in eager mode): the product's kernel would count padding.
        if self.selection.treatment is None:
            sparsify_cpu(x[:real], self.selection.pattern, "magnitude", nonzeros)
        else:
            self.selection.treatment.sparsify(x[:real], nonzeros)
        return None

    def _gather(
        self, x: torch.Tensor, bias: torch.Tensor | None, *, per_token: bool = False
    ) -> torch.Tensor:
        return self._plan(len(x), per_token=per_token)(x, bias)

    def _plan(self, tokens: int, *, per_token: bool) -> Plan:
        plan = self._plans.get((tokens, per_token))
        if plan is None:
            assert self.selection is not None
            assert self.weights.rows is not None
            plan = make_plan(self.weights.rows, self.selection, tokens, per_token)
            self._plans[tokens, per_token] = plan
        return plan

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
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        counters: torch.Tensor,
        product: str,
    ) -> torch.Tensor:
        """Sparsify the tokens of the phase, and multiply all of them."""
        assert self.selection is not None
        codes, treatment = self._phases.codes[: len(x)], self.selection.treatment
        chosen = selected_tokens(codes, self.selection.phase)
        nonzeros = counters[_NONZEROS:]
        part = x[chosen]
        counters.numpy()[_ELEMENTS] += part.numel()
        x = x.clone()
        if treatment is None:
            pattern = self.selection.pattern
            x[chosen] = sparsify_cpu(part, pattern, "magnitude", nonzeros)
            return self.products[product](x, bias)
        found = treatment.sparsify(part, nonzeros)
        x[chosen] = found.values
        y = self.products[product](x, bias)
        if treatment.finishes:
            y[chosen] = treatment.finish(y[chosen], bias, found)
        return y
