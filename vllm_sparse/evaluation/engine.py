"""One engine at a time, in this process, for the time of a measurement."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm_sparse.options import OPTIONS_KEY

FORCED = "vllm_sparse.evaluation.forced:ForcedTokens"
# In ``SamplingParams.extra_args``: the tokens to generate, one for each step.
FORCED_KEY = "vllm_sparse_forced"
DENSE: Mapping[str, Any] = {"enabled": False}


@contextmanager
def open_engine(
    model: str,
    options: Mapping[str, Any],
    *,
    max_model_len: int,
    engine: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """Run vLLM's ``LLM``, and free what it held at the end.

    Args:
        model: folder or Hugging Face id.
        options: of the plugin; :data:`DENSE` for a dense engine, whatever the folder's
            sidecar says.
        max_model_len: tokens of the longest sequence.
        engine: further arguments of ``LLM``, which win over those here.

    Yields:
        vLLM's ``LLM``; it takes forced tokens (:mod:`vllm_sparse.evaluation.forced`).
    """
    import torch
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    arguments: dict[str, Any] = {
        "enforce_eager": True,
        "max_model_len": max_model_len,
        # Prompts must be computed: a cached one would have been under another rule.
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "seed": 0,
        "logits_processors": [FORCED],
        "additional_config": {OPTIONS_KEY: dict(options)},
    }
    if not torch.cuda.is_available():
        # Of the machine's memory; the cache for a few short sequences is small.
        arguments["gpu_memory_utilization"] = 0.3
        arguments["distributed_executor_backend"] = "uni"
    llm: Any = LLM(model=model, **{**arguments, **(engine or {})})
    try:
        yield llm
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
