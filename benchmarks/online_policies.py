"""Policies of a calibrated folder, side by side on one text, and what it cost to make.

    offline-prune calibrate MODEL --recipe rows-50 --calibration web.jsonl -o FOLDER
    python benchmarks/online_policies.py FOLDER --setting rows-50 \
        --text wiki.valid.raw --text-name "WikiText-2 validation"

Judged as ``offline-prune eval FOLDER --phases`` does; the text must be another one than
that of the calibration. Seconds and memory are those that ``calibration.json`` has.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import rows
import torch

from offline_prune.evaluation.load import load_model
from offline_prune.evaluation.online import POLICIES, attach_sidecar, online_result
from offline_prune.evaluation.texts import read_evaluation_text
from offline_prune.evaluation.windows import windows_of
from offline_prune.online.results import read_calibration


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each policy, dense first."""
    loaded = load_model(args.folder)
    emulation = attach_sidecar(loaded.model, args.folder)
    if emulation is None:
        raise SystemExit(
            f"{args.folder} has no activation sparsity. Expected what offline-prune "
            "calibrate makes."
        )
    text = read_evaluation_text(args.text)
    windows = windows_of(
        text, loaded.tokenizer, seq_len=args.length, limit=args.windows
    )
    with emulation:
        found = online_result(
            loaded.model,
            emulation,
            windows=windows,
            text=args.text_name,
            policies=POLICIES,
            continuation_tokens=args.continuation_tokens,
        )
    made = read_calibration(args.folder)
    about = {
        "benchmark": "online_policies",
        "model": args.name,
        "setting": args.setting,
        "calibration": args.calibration_name,
        "calibration_tokens": made.tokens,
        "calibration_seconds": round(sum(made.seconds.values()), 1),
        "calibration_peak_bytes": made.peak_memory_bytes,
        "text": found.text,
        "windows": found.windows,
        "length": found.seq_len,
        "generated_tokens": found.generated_tokens,
        "torch_threads": torch.get_num_threads(),
    }
    return [about | policy.model_dump() for policy in found.policies]


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--setting", required=True, help="what the folder is called")
    parser.add_argument("--name", default="gemma-3-270m", help="model name in the rows")
    parser.add_argument("--calibration-name", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--text-name", required=True)
    parser.add_argument("--windows", type=int, default=8, help="of the text")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--continuation-tokens", type=int, default=32)
    parser.add_argument("--results", type=Path, help="a folder")
    args = parser.parse_args()
    rows.append("online_policies", measure(args), folder=args.results)


def table() -> str:
    """Return a line a policy, and what the calibration cost."""
    found = rows.newest("online_policies", "model", "setting", "policy")
    if not found:
        return "Nothing measured yet."
    lines = [
        "| setting | sparse | perplexity | of decode tokens | KL, decode tokens | same "
        "likeliest token | KL, continuations | same, continuations |",
        "|---" * 8 + "|",
    ]
    costs: dict[str, str] = {}
    for row in found:
        sparse = "nothing" if row["policy"] == "dense" else row["policy"]
        lines.append(
            f"| {row['setting']} | {sparse} | {row['perplexity']:.2f} | "
            f"{row['decode_perplexity']:.2f} | {row['kl']:.3f} | "
            f"{100 * row['top1_agreement']:.1f}% | {row['generated_kl']:.3f} | "
            f"{100 * row['generated_top1_agreement']:.1f}% |"
        )
        costs[row["setting"]] = (
            f"{row['setting']} of {row['model']}: {row['calibration_tokens']:,} tokens "
            f"of {row['calibration']}, {row['calibration_seconds']:.0f} s, peak memory "
            f"{row['calibration_peak_bytes'] / 1e9:.1f} GB; {row['windows']} windows "
            f"of {row['length']} of {row['text']}. {row['date']}, {row['hardware']}, "
            f"{row['torch_threads']} thread(s)."
        )
    return "\n".join([*lines, "", *costs.values()])


if __name__ == "__main__":
    main()
