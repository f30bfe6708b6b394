"""Time a stock engine and one other in turns: the child process of ``decode.py``.

Takes a job as JSON, prints one line of JSON for every batch size.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import decode_child

PROMPT_TOKENS = 32
KV_CACHE_MIB = 1024


def prompts(batch: int, vocabulary: int) -> list[dict[str, Any]]:
    """Return random token ids, the same in every engine and every round.

    Random, so that the requests of a batch say different things: tokens that agree on
    their channels read fewer rows of a weight than tokens of strangers do.
    """
    rng = random.Random(batch)
    ids = [rng.choices(range(3, vocabulary), k=PROMPT_TOKENS) for _ in range(batch)]
    return [{"prompt_token_ids": one} for one in ids]


def decode(llm: Any, batch: int, tokens: int) -> tuple[float, list[list[int]]]:
    """Generate; return seconds from first to last token, and the tokens.

    Raises:
        RuntimeError: if the requests did not start and end together.
    """
    from vllm import SamplingParams

    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    sampling = SamplingParams(
        temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
    )
    outputs = llm.generate(prompts(batch, vocabulary), sampling, use_tqdm=False)
    times = {(x.metrics.first_token_ts, x.metrics.last_token_ts) for x in outputs}
    if len(times) != 1:
        raise RuntimeError(
            f"{batch} requests have {len(times)} pairs of first and last times. "
            "Expected 1: smaller --batches, so that all prompts fit into one step."
        )
    ((first, last),) = times
    return last - first, [list(x.outputs[0].token_ids) for x in outputs]


def distinct(generated: list[list[int]]) -> float:
    """Return the mean share of a step's tokens that differ from each other."""
    steps = list(zip(*generated, strict=True))
    return sum(len(set(step)) / len(step) for step in steps) / len(steps)


def ways(reports: list[dict[str, Any]], batch: int) -> dict[str, str]:
    """Return how each kind of layer runs at a batch size: kind to way, without gains.

    The plugin measures some numbers of tokens; others run like the next larger one.
    Kinds that it leaves to vLLM, and batches above the largest, are not listed.
    """
    found: dict[str, set[str]] = {}
    for report in reports:
        step = min((int(t) for t in report["ways"] if batch <= int(t)), default=None)
        if step is not None:
            way = report["ways"][str(step)].partition(" ")[0]
            found.setdefault(report["kind"], set()).add(way)
    return {kind: " or ".join(sorted(chosen)) for kind, chosen in found.items()}


def measure(
    engines: list[Any], batch: int, job: dict[str, Any]
) -> tuple[list[list[float]], float]:
    """Time the engines in turns, another one first every round.

    Returns:
        Seconds of every engine, one a round, and how far the last one's tokens differ.
    """
    seconds: list[list[float]] = [[] for _ in engines]
    order = list(range(len(engines)))
    generated: list[list[int]] = []
    for turn in range(job["rounds"] + 1):
        order.append(order.pop(0))
        for number in order:
            taken, found = decode(engines[number], batch, job["tokens"])
            if number == len(engines) - 1:
                generated = found
            if turn:  # the first round warms up
                seconds[number].append(taken)
    return seconds, distinct(generated)


def main() -> None:
    """Build stock, then register the plugin if the mode has it, then the other."""
    results = decode_child.only_results_on_stdout()
    job = json.loads(sys.argv[1])
    model, options = job["model"], job["options"]
    stock = decode_child.build(model, None, kv_cache_mib=KV_CACHE_MIB)
    if job["plugin"]:
        decode_child.register_plugin()
    other = decode_child.build(model, options, kv_cache_mib=KV_CACHE_MIB)
    decode_child.check_threads(job["threads"])
    reports = decode_child.layers(other) if job["plugin"] else []
    backends = {report["backend"] for report in reports} - {"dense"}
    about = {
        "dtype": decode_child.dtype(other),
        "backend": ", ".join(sorted(backends)) or "dense",
        "extra_mib": decode_child.extra_mib(reports),
        "threads": job["threads"],
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
