"""Decode speed in vLLM: stock against this plugin, off and on. ``make bench`` runs it.

All engines live in one process and take turns (A B C, A B C, ...), so that they meet
the same machine; each round gives a ratio to stock, and tables show medians of ratios.
The stock engines are built before the plugin is registered. There are two: how far
"stock again" is from 1 is the noise that every other ratio has as well.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ["VLLM_PLUGINS"] = ""  # stock first; the plugin is registered by hand below

import rows

from offline_prune.embedded import default_folder

PROMPT_TOKENS = 32


def build(model: str, options: dict[str, Any] | None) -> Any:
    """Build one engine; ``options`` is our configuration, None for none."""
    from vllm import LLM

    extra = {} if options is None else {"vllm_sparse": options}
    return LLM(
        model=model,
        enforce_eager=True,
        max_model_len=512,
        gpu_memory_utilization=0.2,
        distributed_executor_backend="uni",
        enable_prefix_caching=False,
        additional_config=extra,
    )


def decode_seconds(llm: Any, batch: int, tokens: int) -> float:
    """Return seconds to generate ``tokens`` tokens for ``batch`` short prompts."""
    from vllm import SamplingParams

    prompts = [
        {"prompt_token_ids": [2, *range(100 + i, 100 + i + PROMPT_TOKENS)]}
        for i in range(batch)
    ]
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    start = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - start


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(default_folder()))
    parser.add_argument("--name", default="gemma-3-270m", help="model name in the rows")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    engines = {name: build(args.model, None) for name in ("stock", "stock again")}
    from vllm_sparse import register

    register()
    engines["off"] = build(args.model, None)
    for pattern in ("8:16", "2:4"):
        engines[pattern] = build(args.model, {"activation_sparsity": pattern})

    results: list[dict[str, Any]] = []
    for batch in args.batches:
        times: dict[str, list[float]] = {name: [] for name in engines}
        order = list(engines)
        for turn in range(args.rounds + 1):
            order.append(order.pop(0))  # no engine always follows the same one
            for name in order:
                seconds = decode_seconds(engines[name], batch, args.tokens)
                if turn:  # the first round warms up
                    times[name].append(seconds)
        for name, measured in times.items():
            ratios = [s / t for s, t in zip(times["stock"], measured, strict=True)]
            speed = batch * args.tokens / statistics.median(measured)
            row = {
                "benchmark": "decode",
                "model": args.name,
                "dtype": "bfloat16",
                "mode": name,
                "phase": "decode" if ":" in name else None,
                "backend": "reference" if ":" in name else "dense",
                "batch": batch,
                "tokens": args.tokens,
                "rounds": args.rounds,
                "speed_vs_stock_p20": rows.percentile(ratios, 20),
                "speed_vs_stock_p50": rows.percentile(ratios, 50),
                "speed_vs_stock_p80": rows.percentile(ratios, 80),
                "tokens_per_second_p50": round(speed, 2),
            }
            results.append(row)
            print(
                f"batch {batch:>2}  {name:>11}  {row['speed_vs_stock_p50']:.3f}x stock "
                f"({row['speed_vs_stock_p20']:.3f} to "
                f"{row['speed_vs_stock_p80']:.3f})  {speed:.1f} tokens/s",
                flush=True,
            )
    print(f"rows appended to {rows.append('decode', results)}")


if __name__ == "__main__":
    main()
