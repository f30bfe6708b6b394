"""``Owner``: which layers of an engine own their weight, and why the others do not."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from vllm.logger import init_logger

from nmsparse.dispatch import BACKEND_ENV
from nmsparse.pattern import NMPattern, Pattern
from vllm_sparse.buffers import add_buffer
from vllm_sparse.execution import AUTO, OFF, ON, Execution
from vllm_sparse.owned import OwnedLinear, Selection
from vllm_sparse.timing import KernelTimer, Timings
from vllm_sparse.treatment.weights import PLAIN
from vllm_sparse.work import CRITERION, DTYPE, KERNELS_OFF, NO_KERNEL, QUANTIZED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase

    from vllm_sparse.phases import TokenPhases
    from vllm_sparse.state import LayerState
    from vllm_sparse.treatment.layer import Treatment

    Loaded = Callable[[OwnedLinear | None], None]

logger = init_logger("vllm." + __name__)

# What our kernels read.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The one backend of each device; no others have kernels.
_BACKENDS = {"cpu": "cpu", "cuda": "triton"}


class WhyNot(NamedTuple):
    """Why a layer does not own its weight.

    Attributes:
        text: for people to read.
        reason: of ``vllm_sparse.work``; None where kernels would have nothing to save.
    """

    text: str
    reason: str | None


class Owner:
    """Let layers keep their weight in the layouts of our kernels, where there are any.

    Args:
        execution: the engine's choices.
        phases: phases of the step's tokens, on the engine's device.
        phase: codes of the tokens to sparsify, 0 for all.
        device: type of that device.
        sleeps: whether the engine may give its memory back for a while.
        offloads: whether it keeps weights in the host's memory.
        sign: is told which method runs a layer, once its weight is there.
    """

    def __init__(
        self,
        execution: Execution,
        phases: TokenPhases,
        phase: int,
        device: str,
        *,
        sleeps: bool = False,
        offloads: bool = False,
        sign: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._execution = execution
        self._phases = phases
        self._phase = phase
        self._device = device
        self._sleeps = sleeps
        self._offloads = offloads
        self._sign = sign
        self._problem = self._find_problem()
        self._timer = KernelTimer()

    def why_not(
        self, layer: LinearBase, pattern: Pattern | None, treatment: Treatment | None
    ) -> WhyNot | None:
        """Return why a layer does not own its weight; None if it does."""
        if self._problem is not None:
            return self._problem
        if pattern is not None:
            kept, group = pattern.group(layer.input_size)
            if kept == group:
                text = "all channels stay, so there is nothing to gain"
                return WhyNot(text, None)
        if treatment is not None and treatment.batch_dependent:
            text = "the criterion looks at several tokens, the kernels at one"
            return WhyNot(text, CRITERION)
        method = layer.quant_method
        if type(method).__name__ not in PLAIN:
            text = f"vLLM's {type(method).__name__} has no dense weight"
            return WhyNot(text, QUANTIZED)
        if layer.params_dtype not in _DTYPES:
            return WhyNot(f"no kernel for {layer.params_dtype}", DTYPE)
        if self._device == "cpu":
            return None
        from vllm_sparse.gpu.support import layer_problem

        if pattern is None and not self._execution.may_pack_on_gpu:
            return WhyNot("nothing is sparse", None)
        problem = layer_problem(method, treatment)
        return None if problem is None else WhyNot(problem, NO_KERNEL)

    def take(
        self,
        layer: LinearBase,
        state: LayerState,
        treatment: Treatment | None,
        after_load: Callable[[], None],
    ) -> None:
        """Let a layer own its weight; its state says so once the weight is there.

        Args:
            layer: just built, and :meth:`why_not` is None.
            state: what is known about it.
            treatment: what it does beyond magnitude.
            after_load: called once the layer's weights are in place.
        """
        device = self._phases.codes.device
        counters = torch.zeros(2, dtype=torch.int64, device=device)
        add_buffer(layer, "counters", counters)
        selection = None
        if state.pattern is not None:
            state.counters = counters
            # K on this rank: a shard for row-parallel layers.
            k_local = getattr(layer, "input_size_per_partition", layer.input_size)
            pattern = NMPattern(*state.pattern.group(k_local))
            selection = Selection(pattern, self._phase, treatment)

        def loaded(linear: OwnedLinear | None) -> None:
            if linear is not None:
                # Sessions outlive engines; weights must not.
                state.find_linear = weakref.ref(linear)
                state.backend = _BACKENDS[self._device]
                rule = state.reason.partition(";")[0]
                state.reason = f"{rule}; {linear.describe()}"
                self._time(linear)
            method = type(layer.quant_method).__name__
            self._sign(f"{state.name}: {method} {linear is not None}")
            after_load()

        make = self._on_cpu if self._device == "cpu" else self._on_gpu
        layer.quant_method = make(layer, selection, counters, loaded)

    @property
    def timings(self) -> Timings:
        """What calls took that were timed; empty if none are."""
        return self._timer.timings

    def reset(self) -> None:
        """Forget what was timed."""
        self._timer.reset()

    def _time(self, linear: Any) -> None:
        if self._execution.kernel_timing != ON:
            return
        if self._device == "cpu":
            self._timer.watch(linear)
        else:
            logger.warning_once(
                "vllm-sparse: --kernel-timing is ignored: kernels of a GPU cannot be "
                "timed without waiting for it, least of all in a CUDA graph."
            )

    def prepare(self, model: torch.nn.Module, linears: Sequence[Any]) -> None:
        """Measure which kernels win, once the model is loaded.

        On a GPU each layer was measured when it was loaded: code is captured later.

        Args:
            model: the finished model.
            linears: what runs its layers that own their weight.
        """
        if self._problem is not None or self._device != "cpu":
            return
        from vllm_sparse.cpu.head import wrap_heads
        from vllm_sparse.cpu.prepare import prepare

        if self._execution.kernels == AUTO:
            prepare([*linears, *wrap_heads(model)])

    def _find_problem(self) -> WhyNot | None:
        """Return why no layer can own its weight; None if layers can."""
        if self._execution.kernels == OFF:
            return WhyNot("kernels are off", KERNELS_OFF)
        ours = _BACKENDS.get(self._device)
        if ours is None:
            return WhyNot(f"no kernel for {self._device}", NO_KERNEL)
        forced = os.environ.get(BACKEND_ENV)
        if forced and forced != ours:
            return WhyNot(f"{BACKEND_ENV}={forced}", KERNELS_OFF)
        if self._device == "cpu":
            from nmsparse.native import library

            status = library.status()
            problem = None if status.available else status.reason
        else:
            from vllm_sparse.gpu.support import engine_problem

            problem = engine_problem(sleeps=self._sleeps, offloads=self._offloads)
        if problem is not None:
            logger.warning(
                "vllm-sparse: no %s kernels, so nothing gets faster: %s",
                "CPU" if self._device == "cpu" else "GPU",
                problem,
            )
        return None if problem is None else WhyNot(problem, NO_KERNEL)

    def _on_cpu(
        self,
        layer: LinearBase,
        selection: Selection | None,
        counters: torch.Tensor,
        loaded: Loaded,
    ) -> LinearMethodBase:
        from vllm_sparse.cpu.method import CpuLinearMethod

        return CpuLinearMethod(
            layer.quant_method,
            selection=selection,
            execution=self._execution,
            phases=self._phases,
            counters=counters,
            after_load=loaded,
        )

    def _on_gpu(
        self,
        layer: LinearBase,
        selection: Selection | None,
        counters: torch.Tensor,
        loaded: Loaded,
    ) -> LinearMethodBase:
        from vllm_sparse.gpu.method import GpuLinearMethod

        if selection is not None and self._execution.shared_lists == AUTO:
            logger.warning_once(
                "vllm-sparse: shared_lists is auto: 3 to 16 tokens of a step may share "
                "one list of channels, so the answer to a request depends on the "
                "requests beside it."
            )
        return GpuLinearMethod(
            layer.quant_method,
            layer=layer,
            selection=selection,
            execution=self._execution,
            masks=self._phases.masks(self._phase),
            counters=counters,
            after_load=loaded,
        )
