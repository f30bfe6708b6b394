"""Perplexity through the real engine (prompt log-probabilities), dense and sparse.

    python benchmarks/perplexity.py --text wiki.valid.raw --text-name wikitext-2

Windows do not overlap and start with ``<bos>``; every token but that one is scored.
Sparse rows use phase ``both``: scored tokens are prompt tokens, so they must be
sparsified. One engine runs at a time. The text is yours: this repository ships none.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import rows

from offline_prune.embedded import default_folder
from vllm_sparse.evaluation.engine import open_engine
from vllm_sparse.evaluation.scores import perplexity, score_prompts
from vllm_sparse.evaluation.texts import Windows, cut


def windows(model: str, text: str, length: int, count: int) -> Windows:
    """Cut the tokenised text into windows of ``length`` tokens, ``<bos>`` included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    found = cut(text, tokenizer, seq_len=length, limit=count)
    if len(found.ids) < count:
        raise SystemExit(
            f"--text has {len(found.ids)} windows of {length} tokens. Expected "
            f"{count}: give a longer text or fewer --windows."
        )
    return found


def measure(model: str, data: Windows, options: dict[str, Any]) -> float:
    """Return exp of the mean negative log-likelihood over all scored tokens."""
    with open_engine(model, options, max_model_len=data.seq_len + 1) as llm:
        scored = score_prompts(llm, data.ids)
        del llm  # frees its memory when nothing refers to it
    return perplexity([one.logprobs for one in scored])


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(default_folder()))
    parser.add_argument("--name", default="gemma-3-270m", help="model name in the rows")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--text-name", required=True, help="text name in the rows")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument(
        "--patterns",
        nargs="+",
        default=["dense", "2:4", "4:8", "8:16", "16:32", "12:16"],
    )
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    data = windows(args.model, text, args.length, args.windows)
    results = []
    for pattern in args.patterns:
        options: dict[str, Any] = {"enabled": False}
        if pattern != "dense":
            options = {"activation_sparsity": pattern, "phase": "both"}
        value = measure(args.model, data, options)
        print(f"{pattern:>6}  perplexity {value:.2f}", flush=True)
        results.append(
            {
                "benchmark": "perplexity",
                "model": args.name,
                "dtype": "bfloat16",
                "text": args.text_name,
                "text_sha256": hashlib.sha256(text.encode()).hexdigest()[:16],
                "windows": args.windows,
                "length": args.length,
                "mode": pattern,
                "phase": None if pattern == "dense" else "both",
                "targets": None if pattern == "dense" else "all decoder linears",
                "perplexity": round(value, 3),
            }
        )
    print(f"rows appended to {rows.append('perplexity', results)}")


if __name__ == "__main__":
    main()
