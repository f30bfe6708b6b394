"""What the canary says about a model: error and distance of each kind of layer.

    python benchmarks/canary_values.py --patterns 8:16 12:16 4:16

Every decode step of some answers is compared, so that a row is a mean over all of
them, in the layers that a server would tap. ``spread`` is the standard deviation of
single samples (a kind's mean in one step) relative to the mean: how many samples a
mean needs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import rows

from offline_prune.embedded import default_folder
from vllm_sparse.evaluation.engine import open_engine

PROMPTS = (
    "The history of the railway begins with",
    "Water boils at a lower temperature on a mountain because",
    "def fibonacci(n):\n    ",
    "Dear Sir or Madam,\n\nI am writing to",
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "To bake a loaf of bread you need",
    "Die Sonne ist ein Stern, der",
)


def generate(llm: Any, tokens: int) -> list[dict[str, Any]]:
    """Answer the prompts; return the canary's sums by kind after each step."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
    )
    engine = llm.llm_engine
    step, seen = engine.step, []

    def watched() -> Any:
        outputs = step()
        stats = engine.collective_rpc("vllm_sparse_stats")[0]
        seen.append(stats["canary"]["kinds"])
        return outputs

    engine.step = watched
    try:
        llm.generate(list(PROMPTS), sampling, use_tqdm=False)
    finally:
        del engine.step
    return seen


def measure(args: argparse.Namespace, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Generate with a canary at every step; return its sums by kind after each."""
    with open_engine(args.model, options | {"canary": 1.0}, max_model_len=512) as llm:
        seen = generate(llm, args.tokens)
        del llm  # frees its memory when nothing refers to it
    return seen


def spread(sums: list[dict[str, Any]]) -> float:
    """Return the relative standard deviation of the error of single samples."""
    means = [
        (b["relative_error"] - a["relative_error"]) / (b["tokens"] - a["tokens"])
        for a, b in itertools.pairwise(sums)
        if b["tokens"] > a["tokens"]
    ]
    return round(statistics.stdev(means) / statistics.mean(means), 3)


def make_rows(
    seen: list[dict[str, Any]], about: dict[str, Any], pattern: str, name: str
) -> list[dict[str, Any]]:
    """Return a row for each kind of layer.

    Args:
        seen: sums of the canary, one a step.
        about: fields that all rows share.
        pattern: of the activations.
        name: of what is done beyond magnitude.
    """
    return [
        about
        | {
            "benchmark": "canary_values",
            "pattern": pattern,
            "treatment": name,
            "kind": kind,
            "comparisons": sums["tokens"],
            "relative_error": round(sums["relative_error"] / sums["tokens"], 4),
            "cosine_distance": round(sums["cosine_distance"] / sums["tokens"], 5),
            "spread": spread([sums[kind] for sums in seen]),
        }
        for kind, sums in seen[-1].items()
    ]


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(default_folder()))
    parser.add_argument("--name", default="gemma-3-270m", help="model name in the rows")
    parser.add_argument("--tokens", type=int, default=128, help="to generate a prompt")
    parser.add_argument("--patterns", nargs="+", default=["8:16", "12:16", "4:16"])
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="a folder")
    args = parser.parse_args()
    about = {"model": args.name, "prompts": len(PROMPTS), "tokens": args.tokens}
    treatments: list[tuple[str, str, dict[str, Any]]] = [
        (pattern, "magnitude", {}) for pattern in args.patterns
    ]
    wina = {"criterion": "wina", "mitigation": ["d_pts", "var"]}
    treatments.append((args.patterns[0], "wina, d_pts, var", wina))
    for pattern, name, more in treatments:
        options = {"activation_sparsity": pattern, "phase": "decode", **more}
        made = make_rows(measure(args, options), about, pattern, name)
        for row in made:
            print(
                f"{pattern:>6} {name:>16} {row['kind']:>8}  error "
                f"{row['relative_error']:.4f}  distance {row['cosine_distance']:.5f}  "
                f"spread {row['spread']:.3f}",
                flush=True,
            )
        rows.append("canary_values", made, folder=args.results)


if __name__ == "__main__":
    main()
