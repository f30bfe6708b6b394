"""Run engines in this process and print their tokens: a child of the engine tests.

Reads a list of jobs as JSON from standard input; writes the results to the file named
as the first argument. One process can run several engines, one after the other, which
saves most of the start-up time.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def watch(pattern: str) -> list[str]:
    """Check every activation that reaches a sparse layer's product, token by token."""
    from nmsparse import parse_pattern, verify
    from vllm_sparse import method

    violations: list[str] = []
    original = method.sparsify_tokens
    chosen = parse_pattern(pattern)

    def checked(x: Any, *args: Any, **kwargs: Any) -> Any:
        sparse = original(x, *args, **kwargs)
        if not verify(sparse, chosen):
            violations.append(f"{tuple(x.shape)} with {kwargs}")
        return sparse

    method.sparsify_tokens = checked
    return violations


def unwatch() -> None:
    """Undo :func:`watch`."""
    from vllm_sparse import custom_ops, method

    method.sparsify_tokens = custom_ops.sparsify_tokens


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Build one engine, generate, and report."""
    from vllm import LLM, SamplingParams

    start = time.perf_counter()
    options = {
        "enforce_eager": True,
        "gpu_memory_utilization": 0.3,
        "max_model_len": 256,
        "disable_log_stats": True,
        "seed": 0,
    }
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0":
        options["distributed_executor_backend"] = "uni"
    if job.get("nested"):
        from support import nested

        nested.register()
    if job.get("as_gpu"):
        from support import as_gpu

        as_gpu.pretend()
    llm = LLM(model=job["model"], **{**options, **job.get("options", {})})
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=job.get("max_tokens", 16),
        prompt_logprobs=job.get("prompt_logprobs"),
        ignore_eos=True,
    )
    violations = watch(job["verify"]) if "verify" in job else None
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    if job.get("one_by_one"):
        outputs = [llm.generate(p, sampling, use_tqdm=False)[0] for p in prompts]
    else:
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
    stats = [None]
    if "vllm_sparse" in sys.modules:
        stats = llm.collective_rpc("vllm_sparse_stats")
    result = {
        "tokens": [list(o.outputs[0].token_ids) for o in outputs],
        "stats": stats,
        "violations": violations,
        "seconds": time.perf_counter() - start,
    }
    if job.get("prompt_logprobs") is not None:
        result["prompt_logprobs"] = [
            [
                None
                if entry is None
                else {str(t): lp.logprob for t, lp in entry.items()}
                for entry in output.prompt_logprobs
            ]
            for output in outputs
        ]
    if violations is not None:
        unwatch()
    del llm, outputs
    gc.collect()
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    return result


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    jobs = json.load(sys.stdin)
    Path(sys.argv[1]).write_text(json.dumps([run(job) for job in jobs]))
