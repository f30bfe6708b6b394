"""Time an engine without a canary and one with it in turns: see ``canary_cost.py``.

Takes a job as JSON, prints one line of JSON for every batch size.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import decode_child
import decode_pair


def sampled(llm: Any) -> int:
    """Return how many steps an engine's canary has compared."""
    canary = llm.collective_rpc("vllm_sparse_stats")[0]["canary"]
    if canary is None:
        return 0
    tokens: int = sum(kind["tokens"] for kind in canary["kinds"].values())
    return tokens // len(canary["layers"])


def main() -> None:
    """Build both engines with the plugin, and measure every batch size."""
    results = decode_child.only_results_on_stdout()
    job = json.loads(sys.argv[1])
    decode_child.register_plugin()
    canary = {"canary": job["share"]} if job["share"] else {}
    engines = [
        decode_child.build(
            job["model"],
            job["options"] | more,
            kv_cache_mib=decode_pair.KV_CACHE_MIB,
            eager=not job["compiled"],
        )
        for more in ({}, canary)
    ]
    decode_child.check_threads(job["threads"])
    stats = engines[1].collective_rpc("vllm_sparse_stats")[0]
    about = {
        "dtype": decode_child.dtype(engines[1]),
        "threads": job["threads"],
        "sparse_layers": sum(x["pattern"] is not None for x in stats["layers"]),
        "tapped_layers": len(stats["canary"]["layers"]) if canary else 0,
    }
    for batch in job["batches"]:
        before = sampled(engines[1])
        seconds, _ = decode_pair.measure(engines, batch, job)
        found = {
            "batch": batch,
            "sampled_steps": sampled(engines[1]) - before,
            "seconds": dict(zip(("without", "canary"), seconds, strict=True)),
        }
        print(json.dumps(about | found), file=results)


if __name__ == "__main__":
    main()
