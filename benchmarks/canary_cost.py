"""What ``--canary`` costs: of every decode step, and of a step that is sampled.

    python benchmarks/canary_cost.py --batches 1 4
    python benchmarks/canary_cost.py --batches 1 --compiled

Not a race of two engines, whose noise is many times the difference. One engine with a
canary decodes; blocks of steps that are all sampled and blocks of which none is take
turns, and what a sampled step takes more is the median difference of neighbours. What a
tap takes in a step that is not sampled is timed by itself, on that engine's layers: it
is far below what a step can show. A share of sampled steps costs a tap's time at every
step, and the difference at its share of the steps.

``--compiled`` lets vLLM compile the model, as servers do. There a tapped layer calls
its op at every step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

# Before vLLM is imported: the engine runs in this process, so that it can be looked at.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import rows
import torch
from metrics_cost import least
from models import EMBEDDED, SHAPES, find
from vllm import LLM, SamplingParams

from vllm_sparse.canary.ops import NO_ROW
from vllm_sparse.engines import find_session

PROMPT, BLOCK, NEVER, ROUNDS = 16, 4, 1 << 40, 200
SHARES = (0.001, 0.01, 0.1)


def canary_of(worker: Any) -> Any:
    """Return the canary of a worker."""
    session = find_session(worker.vllm_config)
    assert session is not None
    assert session.canary is not None
    return session.canary


def sample_every(worker: Any, steps: int) -> None:
    """Sample one of so many steps from now on."""
    canary = canary_of(worker)
    canary._every = steps
    canary._steps = 0


def of_worker(worker: Any, batch: int, compiled: bool) -> dict[str, Any]:
    """Return what the taps take in a step that is not sampled, and their number."""
    canary = canary_of(worker)
    layers = [tap._find() for tap in canary._taps]
    assert all(layer.vllm_sparse_canary_row.item() == NO_ROW for layer in layers)
    tap = torch.ops.vllm_sparse.tap_token if compiled else _eager_tap()
    calls = []
    for layer in layers:
        before, after = layer.vllm_sparse_canary_before, layer.vllm_sparse_canary_after
        x, y = before.expand(batch, -1), after.expand(batch, -1)
        calls.append((x, y, layer.vllm_sparse_canary_row, before, after))

    def idle() -> None:
        for call in calls:
            tap(*call)

    session = find_session(worker.vllm_config)
    assert session is not None
    return {
        "sparse_layers": sum(layer.pattern is not None for layer in session.layers),
        "tapped_layers": len(layers),
        "taps_us": round(1e6 * least(idle, ROUNDS), 2),
    }


def _eager_tap() -> Any:
    from vllm_sparse.canary.ops import tap_token

    return tap_token


def decode(llm: LLM, batch: int, tokens: int) -> tuple[list[float], list[float]]:
    """Generate; return mean seconds of a step in blocks without samples, and with."""
    engine = llm.llm_engine
    options = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    for number in range(batch):
        prompt = {"prompt_token_ids": [5 + number] * PROMPT}
        engine.add_request(f"{time.monotonic()}-{number}", prompt, options)
    while len(engine.step()) < batch:  # prompts
        pass
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range((tokens - 2) // (2 * BLOCK + 2) * 2):
        sampled = turn % 2
        llm.collective_rpc(partial(sample_every, steps=1 if sampled else NEVER))
        # It finishes what the block before has sampled, and starts the first sample.
        engine.step()
        start = time.perf_counter()
        for _ in range(BLOCK):
            engine.step()
        found[sampled].append((time.perf_counter() - start) / BLOCK)
    llm.collective_rpc(partial(sample_every, steps=NEVER))
    while engine.has_unfinished_requests():
        engine.step()
    return found


def make_row(
    without: list[float], sampled: list[float], taps_us: float
) -> dict[str, Any]:
    """Return fields of a row.

    Args:
        without: mean seconds of a step in blocks without samples.
        sampled: of the block with samples after each of them.
        taps_us: microseconds of all taps in a step that is not sampled.
    """
    step = statistics.median(without)
    pairs = zip(without, sampled, strict=False)
    more = [1000 * (with_ - none) for none, with_ in pairs]
    extra = statistics.median(more)
    return {
        "step_ms": round(1000 * step, 3),
        "sampled_more_ms": round(extra, 3),
        "sampled_more_ms_p20": round(rows.percentile(more, 20), 3),
        "sampled_more_ms_p80": round(rows.percentile(more, 80), 3),
        "pairs": len(more),
        "cost": {
            str(share): (taps_us / 1000 + share * extra) / (1000 * step)
            for share in SHARES
        },
    }


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        default=EMBEDDED,
        help=f"{EMBEDDED} (the embedded model), {', '.join(SHAPES)} (random weights, "
        "made once) or a folder",
    )
    parser.add_argument("--name", help="model name in the rows; else the folder's")
    parser.add_argument("--pattern", default="8:16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument(
        "--tokens", type=int, default=480, help="to generate; 32 to 480"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="a folder")
    args = parser.parse_args()
    if not 32 <= args.tokens <= 480 or args.rounds < 1:
        parser.error("--tokens must be 32 to 480, and --rounds at least 1")
    return args


def main() -> None:
    """Measure and append rows."""
    args = parse()
    model = find(args.model)
    llm = LLM(
        str(model.folder),
        skip_tokenizer_init=True,
        enforce_eager=not args.compiled,
        max_model_len=512,
        max_num_seqs=max(args.batches),
        enable_prefix_caching=False,
        additional_config={
            "vllm_sparse": {"activation_sparsity": args.pattern, "canary": 1.0}
        },
    )
    for batch in args.batches:
        without: list[float] = []
        sampled: list[float] = []
        for _ in range(args.rounds):
            for seconds, more in zip(
                (without, sampled), decode(llm, batch, args.tokens), strict=True
            ):
                seconds += more
        about = partial(of_worker, batch=batch, compiled=args.compiled)
        taps = llm.collective_rpc(about)[0]
        row = {
            "benchmark": "canary_cost",
            "model": args.name or model.name,
            "batch": batch,
            "pattern": args.pattern,
            "compiled": args.compiled,
            **taps,
            **make_row(without, sampled, taps["taps_us"]),
            "threads": torch.get_num_threads(),
        }
        costs = ", ".join(f"{100 * x:.3f} % at {s}" for s, x in row["cost"].items())
        print(
            f"batch {batch}: step {row['step_ms']:.2f} ms, taps {row['taps_us']:.1f} "
            f"us, sampled {row['sampled_more_ms']:.2f} ms more "
            f"({row['sampled_more_ms_p20']:.2f} to {row['sampled_more_ms_p80']:.2f}, "
            f"{row['pairs']} pairs): {costs}",
            flush=True,
        )
        rows.append("canary_cost", [row], folder=args.results)


if __name__ == "__main__":
    main()
