"""``GpuLinearMethod``: vLLM's linear method of a layer whose weight we own on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearMethodBase

from nmsparse.packed import PackedWeight
from vllm_sparse.buffers import add_buffer
from vllm_sparse.custom_ops import register_linear
from vllm_sparse.execution import AUTO, MIN_SPARSITY, ON
from vllm_sparse.gpu import ops
from vllm_sparse.gpu.choice import NEVER, PACKED
from vllm_sparse.gpu.linear import GpuLinear
from vllm_sparse.gpu.tune import tune, warm_up
from vllm_sparse.gpu.ways import Terms
from vllm_sparse.gpu.weights import Held, repack, share_of_zeros, store_k_major
from vllm_sparse.method import product_bias
from vllm_sparse.phases import Masks
from vllm_sparse.table import TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_sparse.execution import Execution
    from vllm_sparse.owned import Selection

logger = init_logger("vllm." + __name__)

# Tensors the op takes, as buffers of the layer.
_PARAMETERS = ("factor", "channel_shift", "output_scale", "channel_groups")
_CONSTANTS = ("row_sum", "constant")


class GpuLinearMethod(LinearMethodBase):
    """Own the weight of an unquantized layer on a GPU.

    Args:
        inner: the method vLLM chose, which has a dense ``layer.weight``.
        layer: the layer; it gets the tensors of the op as buffers.
        selection: what is sparsified; None for a dense input, whose layer is ours only
            if its weight has zeros enough to be read faster packed.
        execution: the engine's choices.
        masks: which tokens of a step are sparsified.
        counters: ``[2]`` int64, elements and non-zeros.
        after_load: called with the finished :class:`GpuLinear`, None if the layer has
            nothing of ours and stays vLLM's.
    """

    def __init__(
        self,
        inner: LinearMethodBase,
        *,
        layer: torch.nn.Module,
        selection: Selection | None,
        execution: Execution,
        masks: Masks,
        counters: torch.Tensor,
        after_load: Callable[[GpuLinear | None], None],
    ) -> None:
        self.inner = inner
        self._selection = selection
        self._execution = execution
        self._masks = masks
        self._counters = counters
        self._after_load = after_load
        self._linear: GpuLinear | None = None
        self._processed = False
        # Class attributes of the base class would hide the inner method's.
        self.requires_device_loading = inner.requires_device_loading
        self.uses_meta_device = inner.uses_meta_device
        self.supports_pre_processed_weights = inner.supports_pre_processed_weights
        treatment = selection.treatment if selection else None
        self._variance = treatment is not None and treatment.online.variance
        self._tensors: dict[str, torch.Tensor | None] = dict.fromkeys(
            (*_PARAMETERS, *_CONSTANTS)
        )
        if treatment is not None:
            for name in _PARAMETERS:
                self._tensors[name] = getattr(treatment.parameters, name)
            for name in _CONSTANTS:
                self._tensors[name] = getattr(treatment.constants, name)
        buffers = {**self._tensors, "counters": counters, **masks._asdict()}
        for name, tensor in buffers.items():
            add_buffer(layer, name, tensor)

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Forward to the inner method."""
        self.inner.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Own the weight, and choose its kernels; again when it was loaded again."""
        weight: torch.Tensor = layer.weight.data  # type: ignore[assignment]
        # Convolutions and missing layers are vLLM's alone. What has nothing of ours
        # stays so: compiled code has its product.
        fits = weight.dim() == 2 and weight.numel() and not weight.is_meta
        mine = fits and not (self._processed and self._linear is None)
        treatment = self._selection.treatment if self._selection else None
        if mine and treatment is not None:
            treatment.read(layer, weight)
        self.inner.process_weights_after_loading(layer)
        if mine:
            self._own(layer)
        processed, self._processed = self._processed, True
        if not processed:
            self._after_load(self._linear)

    def _own(self, layer: torch.nn.Module) -> None:
        """Lay the weight out, and make or refresh what is held beside it."""
        weight: torch.Tensor = layer.weight.data  # type: ignore[assignment]
        zeros = share_of_zeros(weight)
        if self._linear is None:
            self._linear = self._make(layer, zeros)
            return
        held = self._linear.weights
        held.sparsity = zeros
        if held.packed is not None:
            repack(held.packed, weight)
        if self._selection is not None:
            store_k_major(layer)

    def _make(self, layer: Any, zeros: float) -> GpuLinear | None:
        """Return what runs the layer; None if vLLM does."""
        execution, selection = self._execution, self._selection
        held = Held(zeros)
        if execution.may_pack_on_gpu and zeros >= MIN_SPARSITY:
            held.packed = _packed(layer.weight.data)
        if selection is None and held.packed is None:
            return None
        fast = execution.leaves_steps_dense("cuda")
        linear = GpuLinear(
            held,
            sparse=selection is not None,
            always=execution.kernels == ON,
            shared=execution.shared_lists == AUTO,
            dense_above=TOKENS[-1] if fast else NEVER,
            weight_bytes=layer.weight.nbytes,
            density=1.0 if selection is None else selection.density,
        )
        terms = self._terms(layer, held)
        linear.times = tune(linear, terms, self._label)
        ways = {linear.plan(tokens).way for tokens in TOKENS}
        if not any(PACKED in way for way in ways):
            # It was not measured to win, or was not measured.
            held.packed = None
        if selection is None and held.packed is None:
            return None
        try:
            warm_up(
                linear,
                replace(terms, packed=held.packed),
                self._masks,
                product_bias(layer),
            )
        except Exception as error:  # a server that starts is worth more than a kernel
            logger.warning_once(
                "vllm-sparse: kernels do not run on this GPU, so layers run dense: %s",
                error,
            )
            linear.use_dense()
        key = register_linear(linear)
        add_buffer(layer, "key", key)
        return linear

    def _terms(self, layer: Any, held: Held) -> Terms:
        """Return what a step of the layer is made of."""
        selection = self._selection
        if selection is None:
            rows = layer.weight.data.t()
            return Terms(rows, None, 1, 1, 0, packed=held.packed)
        return Terms(
            rows=store_k_major(layer),
            bias=None,
            kept=selection.pattern.n,
            group=selection.pattern.m,
            phase=selection.phase,
            variance=self._variance,
            packed=held.packed,
            **self._tensors,
        )

    @property
    def _label(self) -> str:
        """What decides the cost beside the shape: layers of one share a table."""
        if self._selection is None:
            return "dense"
        treatment = self._selection.treatment
        words = [str(self._selection.pattern), treatment.label if treatment else ""]
        words.append("some" if self._selection.phase else "all")
        return " ".join(filter(None, words))

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the product; ``x`` is ``[T, K]`` or ``[1, T, K]``."""
        if self._linear is None:
            result: torch.Tensor = self.inner.apply(layer, x, bias)
            return result
        # Nothing is traced in eager mode: the dispatcher would only cost time.
        compiling = torch.compiler.is_compiling()
        if self._selection is None:
            packed: Any = ops.packed_tokens_cuda
            if compiling:
                packed = torch.ops.vllm_sparse.packed_tokens
            result = packed(x, layer.weight, bias, layer.vllm_sparse_key)
            return result
        gather: Any = ops.gather_tokens_cuda
        if compiling:
            gather = torch.ops.vllm_sparse.gather_tokens
        result = gather(
            x,
            # The parameter's own storage, whoever replaced or reloaded it.
            layer.weight.t(),
            bias,
            layer.vllm_sparse_key,
            layer.vllm_sparse_sparse,
            layer.vllm_sparse_counted,
            layer.vllm_sparse_counters,
            layer.vllm_sparse_factor,
            layer.vllm_sparse_channel_shift,
            layer.vllm_sparse_output_scale,
            layer.vllm_sparse_channel_groups,
            layer.vllm_sparse_row_sum,
            layer.vllm_sparse_constant,
            self._selection.pattern.n,
            self._selection.pattern.m,
            self._selection.phase,
            self._variance,
        )
        return result

    def dense(
        self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the product without sparsity, ``[T, O]``."""
        if self._linear is None:
            result: torch.Tensor = self.inner.apply(layer, x, bias)
            return result
        # As dense steps do: the weight is ours.
        return F.linear(x, layer.weight, bias)

    def dequantize_weight(self, layer: torch.nn.Module) -> torch.Tensor:
        """Forward to the inner method."""
        weight: torch.Tensor = self.inner.dequantize_weight(layer)
        return weight

    def __getattr__(self, name: str) -> Any:
        """Expose the inner method's other attributes (vLLM looks some of them up)."""
        if name == "inner":  # not set yet: avoid recursion while unpickling
            raise AttributeError(name)
        return getattr(self.inner, name)


def _packed(weight: torch.Tensor) -> PackedWeight | None:
    """Return a packed copy; None if it cannot be made, for want of memory."""
    try:
        return PackedWeight.pack(weight.contiguous())
    except RuntimeError as error:
        logger.warning_once("vllm-sparse: a weight was not packed: %s", error)
        return None
