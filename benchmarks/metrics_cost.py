"""What the metrics cost: the time of the code that counts, over that of a decode step.

    python benchmarks/metrics_cost.py --batch 1 4

Not a race of two engines, whose noise is many times the difference. One engine decodes;
then the code that counts a call, the code that counts a step, and a whole poll of the
workers are timed by themselves, on that engine's own layers. All times are the least of
many rounds, the step's too, so other work on the machine changes the share little. A
poll blocks the engine while the worker answers; what the API server then does with the
answer is another process's work, and is counted all the same.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Before vLLM is imported: the engine runs in this process, so that it can be looked at.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import rows
import torch
from models import EMBEDDED, SHAPES, find
from vllm import LLM, SamplingParams
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from vllm_sparse.engines import find_session
from vllm_sparse.serving.aggregate import merge_ranks
from vllm_sparse.serving.endpoint import POLL_SECONDS
from vllm_sparse.serving.metrics import SparsityMetrics
from vllm_sparse.stats import collect

PROMPT, TOKENS, ROUNDS = 16, 48, 200


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
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--pattern", default="8:16")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="a folder")
    return parser.parse_args()


def main() -> None:
    """Measure and append rows."""
    args = parse()
    model = find(args.model)
    llm = LLM(
        str(model.folder),
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=max(args.batch),
        enable_prefix_caching=False,
        additional_config={"vllm_sparse": {"activation_sparsity": args.pattern}},
    )
    metrics = SparsityMetrics()
    for batch in args.batch:
        step = decode_step(llm, batch)
        found = llm.collective_rpc(partial(of_worker, batch=batch))[0]
        poll = least(partial(poll_once, llm, metrics), 20)
        counting = found["calls"] * found["call_us"] / 1e6 + found["publish_us"] / 1e6
        row = {
            "benchmark": "metrics_cost",
            "model": args.name or model.name,
            "batch": batch,
            "pattern": args.pattern,
            "step_ms": 1e3 * step,
            **found,
            "poll_ms": 1e3 * poll,
            "poll_seconds": POLL_SECONDS,
            "share": counting / step + poll / POLL_SECONDS,
            "threads": torch.get_num_threads(),
        }
        print(
            f"batch {batch}: step {row['step_ms']:.2f} ms, {row['calls']} calls of "
            f"{row['call_us']:.2f} us, step {row['publish_us']:.1f} us, poll "
            f"{row['poll_ms']:.2f} ms: {100 * row['share']:.3f} %",
            flush=True,
        )
        rows.append("metrics_cost", [row], folder=args.results)


def decode_step(llm: LLM, batch: int) -> float:
    """Return the least seconds of a step in which every request generates a token."""
    engine = llm.llm_engine
    options = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    for number in range(batch):
        prompt = {"prompt_token_ids": [5 + number] * PROMPT}
        engine.add_request(f"{batch}-{number}", prompt, options)
    seconds: list[float] = []
    while engine.has_unfinished_requests():
        start = time.perf_counter()
        done = engine.step()
        if len(done) == batch:
            seconds.append(time.perf_counter() - start)
    return min(seconds[2:])  # the first ones hold prompts


def of_worker(worker: Any, batch: int) -> dict[str, Any]:
    """Return what counting takes in a worker: of a call, and of a step.

    Args:
        worker: has just run steps of ``batch`` generated tokens.
        batch: their number.
    """
    session = find_session(worker.vllm_config)
    assert session is not None
    states = [state for state in session.layers if state.linear is not None]
    linears = [state.linear for state in states]
    phases = session.phases
    phases.publish(torch.full((batch,), PROMPT + 1), torch.full((batch,), PROMPT))
    # As in ``CpuLinear.run``, with the layers in turn, as a step has them.
    inputs = [torch.zeros(batch, x.in_features, dtype=x.dtype) for x in linears]
    counters = [state.counters for state in states]
    # What is looked up to choose a way is not looked up to count.
    outcomes = [x.outcome(y) for x, y in zip(linears, inputs, strict=True)]
    calls = list(zip(linears, inputs, counters, outcomes, strict=True))
    rows_read = ctypes.c_int64(1)

    def count() -> None:
        for linear, x, counter, outcome in calls:
            real = phases.real(x.shape[0])
            if real:
                outcome.calls += 1
                linear._counter(x, counter, real)
            if real and outcome.row_bytes:
                outcome.rows += rows_read.value

    seconds = least(count, ROUNDS) / len(calls)
    codes = phases.codes[:batch].long()
    step = least(partial(phases._count, codes, batch), ROUNDS)
    return {"calls": len(calls), "call_us": 1e6 * seconds, "publish_us": 1e6 * step}


def poll_once(llm: LLM, metrics: SparsityMetrics) -> None:
    """Do what a poll makes of worker and API server, its transport included."""
    answers = llm.collective_rpc(collect)
    sent = MsgpackEncoder().encode(answers)
    received = MsgpackDecoder(list[dict[str, Any]]).decode(sent)
    metrics.update(merge_ranks(received))


def least(call: Callable[[], object], rounds: int) -> float:
    """Return the least seconds of a call."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    main()
