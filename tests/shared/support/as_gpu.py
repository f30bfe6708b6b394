"""Let an engine on the CPU take its device for a GPU: kernels are interpreted.

What it shows: weights that vLLM loads, masks that its runner publishes, LoRA, tensor
parallelism and compiled code with the layers of ``vllm_sparse.gpu``. No speed, and no
CUDA graphs.
"""

from __future__ import annotations

from typing import Any


def pretend() -> None:
    """Patch this process, before it builds an engine; gathering wins everywhere."""
    import torch
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    from vllm_sparse import session
    from vllm_sparse.canary.method import TappedMethod
    from vllm_sparse.gpu import method, ops, support
    from vllm_sparse.table import TOKENS

    vars(session)["_device_type"] = lambda device: "cuda"
    vars(support)["engine_problem"] = lambda **_: None
    vars(support)["layer_problem"] = lambda method, treatment: None
    vars(method)["tune"] = lambda linear, terms, label: {
        tokens: {linear.first: 2.0, "gather": 1.0} for tokens in TOKENS
    }
    packs = UnquantizedLinearMethod.process_weights_after_loading

    def process(self: Any, layer: Any) -> None:
        # vLLM's CPU backend takes the weight away; on a GPU it stays.
        ours = layer.quant_method
        if isinstance(ours, TappedMethod):
            ours = ours.inner
        if not isinstance(ours, method.GpuLinearMethod):
            packs(self, layer)

    UnquantizedLinearMethod.process_weights_after_loading = process
    library = torch.library.Library("vllm_sparse", "IMPL")
    library.impl("gather_tokens", ops.gather_tokens_cuda, "CPU")
    vars(ops)["_FOR_TESTS"] = library  # kept alive
