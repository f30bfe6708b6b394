"""Time a stock engine and one other in turns on a GPU: the child of ``gpu_decode.py``.

As ``decode_pair.py``, with CUDA graphs, random weights that vLLM makes in place, and
memory for two engines. Takes a job as JSON, prints one line of JSON for every batch
size.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import decode_child
from decode_pair import PROMPT_TOKENS, measure, ways

GIB = 1 << 30
# How vLLM runs the model; docs/gpu-kernels.md says when to fall back to which.
ENGINES: dict[str, dict[str, Any]] = {
    "compile": {},
    "graph": {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
    "eager": {"enforce_eager": True},
}


def arguments(job: dict[str, Any], options: dict[str, Any] | None) -> dict[str, Any]:
    """Return what vLLM's ``LLM`` is built with.

    Args:
        job: ``model``, ``engine``, ``attention``, ``batches``, ``tokens``,
            ``memory_share`` and ``kv_cache_gib``.
        options: our configuration, or None for none.
    """
    found: dict[str, Any] = {
        "model": job["model"],
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "max_model_len": PROMPT_TOKENS + job["tokens"] + 16,
        "max_num_seqs": max(job["batches"]),
        # All prompts of a batch in one step, or its requests do not start together.
        "max_num_batched_tokens": max(2048, max(job["batches"]) * PROMPT_TOKENS),
        "gpu_memory_utilization": job["memory_share"],
        "kv_cache_memory_bytes": int(job["kv_cache_gib"] * GIB),
        "distributed_executor_backend": "uni",
        "enable_prefix_caching": False,
        "disable_log_stats": False,  # or no request has times
        "additional_config": {} if options is None else {"vllm_sparse": options},
    }
    found |= ENGINES[job["engine"]]
    if job["attention"]:
        found["attention_backend"] = job["attention"]
    if job["engine"] != "eager":
        sizes = {"cudagraph_capture_sizes": sorted(job["batches"])}
        given = found.get("compilation_config", {})
        found["compilation_config"] = given | sizes
    return found


def prune_dummy_weights(percent: int) -> None:
    """Make vLLM's random weights of decoder linears have zeros, smallest first.

    The engines that are built from now on have them, stock ones too: a dense product
    is as fast with zeros as with other weights.
    """
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    from nmsparse import parse_pattern, sparsify

    load = DummyModelLoader.load_weights
    pattern = parse_pattern(f"{percent}%")

    def pruned(self: Any, model: Any, *args: Any, **named: Any) -> None:
        load(self, model, *args, **named)
        found = 0
        for name, weight in model.named_parameters():
            if ".layers." in name and name.endswith("_proj.weight"):
                weight.data.copy_(sparsify(weight.data, pattern))
                found += 1
        if not found:
            raise RuntimeError(
                "No weight was pruned. Expected *_proj.weight of decoder layers among "
                "the model's parameters."
            )

    DummyModelLoader.load_weights = pruned


def build(job: dict[str, Any], options: dict[str, Any] | None) -> Any:
    """Build one engine in this process."""
    from vllm import LLM

    began = time.monotonic()
    llm = LLM(**arguments(job, options))
    print(f"engine after {time.monotonic() - began:.0f} s", file=sys.stderr)
    return llm


def main() -> None:
    """Build stock, then register the plugin if the mode has it, then the other."""
    results = decode_child.only_results_on_stdout()
    job = json.loads(sys.argv[1])
    if job["pruned"]:
        prune_dummy_weights(job["pruned"])
    stock = build(job, None)
    if job["plugin"]:
        decode_child.register_plugin()
    other = build(job, job["options"])
    reports = decode_child.layers(other) if job["plugin"] else []
    backends = {report["backend"] for report in reports} - {"dense"}
    about = {
        "dtype": decode_child.dtype(other),
        "backend": ", ".join(sorted(backends)) or "dense",
        "extra_mib": decode_child.extra_mib(reports),
    }
    for batch in job["batches"]:
        seconds, different = measure([stock, other], batch, job)
        found = {
            "batch": batch,
            "seconds": dict(zip(("stock", "mode"), seconds, strict=True)),
            "ways": ways(reports, batch),
            "distinct_tokens": round(different, 3),
        }
        print(json.dumps(about | found), file=results)


if __name__ == "__main__":
    main()
