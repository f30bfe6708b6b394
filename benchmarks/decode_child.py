"""What the child processes of ``decode.py`` and ``memory.py`` share."""

from __future__ import annotations

import os
from typing import Any, TextIO


def only_results_on_stdout() -> TextIO:
    """Return a file for results; whatever else is printed goes to standard error."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return results


def register_plugin() -> None:
    """Register the plugin: engines that are built from now on have its layers."""
    from vllm_sparse import register

    register()


def build(
    model: str,
    options: dict[str, Any] | None,
    *,
    kv_cache_mib: int,
    eager: bool = True,
) -> Any:
    """Build one engine in this process; ``options`` is our configuration."""
    from vllm import LLM

    return LLM(
        model=model,
        skip_tokenizer_init=True,
        enforce_eager=eager,
        max_model_len=512,
        kv_cache_memory_bytes=kv_cache_mib << 20,
        distributed_executor_backend="uni",
        enable_prefix_caching=False,
        disable_log_stats=False,  # or no request has times
        additional_config={} if options is None else {"vllm_sparse": options},
    )


def check_threads(threads: int) -> None:
    """Make sure that products run on as many threads as the row will say.

    Raises:
        RuntimeError: if they do not.
    """
    import torch

    found = torch.get_num_threads()
    if found != threads:
        raise RuntimeError(
            f"Products run on {found} threads. Expected {threads}, by OMP_NUM_THREADS."
        )


def dtype(llm: Any) -> str:
    """Return the type of an engine's weights and activations."""
    return str(llm.llm_engine.model_config.dtype).removeprefix("torch.")


def layers(llm: Any) -> list[dict[str, Any]]:
    """Return the reports of an engine's linear layers; none if it is not sparse."""
    stats = llm.collective_rpc("vllm_sparse_stats")[0]
    return [] if stats is None else list(stats["layers"])


def extra_mib(reports: list[dict[str, Any]]) -> float:
    """Return the size of our copies of weights, without heads."""
    total: int = sum(report["extra_bytes"] for report in reports)
    return round(total / 2**20, 1)
