"""What ``--canary`` costs: decoding with it against decoding without, in turns.

    python benchmarks/canary_cost.py --shares 0 0.001 0.01 0.1

Every share has a process of its own with two engines of the same options, one without
a canary and one with it, that generate in turns. Share 0 is a second engine without:
how far it is from 1 is the noise that the other ratios have as well. A small share
samples no step in most rounds, so that a median would not see it: rows also have the
ratio of all seconds together.

``--compiled`` lets vLLM compile the model, as servers do. There a tapped layer calls
its op at every step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import rows
from decode_modes import default_threads, kill_child_on_sigterm, run_child
from models import EMBEDDED, SHAPES, find

PAIR = Path(__file__).with_name("canary_pair.py")


def make_row(found: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one share at one batch size.

    Args:
        found: what the child printed.
        about: fields that all rows of this run share.
    """
    seconds = found.pop("seconds")
    without, canary = seconds["without"], seconds["canary"]
    ratios = [a / b for a, b in zip(without, canary, strict=True)]
    steps = about["tokens"] - 1
    return (
        about
        | found
        | {
            "speed_vs_without_total": round(sum(without) / sum(canary), 4),
            "speed_vs_without_p20": rows.percentile(ratios, 20),
            "speed_vs_without_p50": rows.percentile(ratios, 50),
            "speed_vs_without_p80": rows.percentile(ratios, 80),
            "milliseconds_per_step_p50": round(
                1000 * statistics.median(without) / steps, 3
            ),
        }
    )


def report(row: dict[str, Any]) -> None:
    """Print one row."""
    print(
        f"{'compiled' if row['compiled'] else 'eager':>8}  batch {row['batch']:>2}  "
        f"share {row['share']:<6}  {row['speed_vs_without_total']:.4f}x without "
        f"({row['speed_vs_without_p20']:.3f} to {row['speed_vs_without_p80']:.3f})  "
        f"{row['sampled_steps']} steps sampled, {row['tapped_layers']} of "
        f"{row['sparse_layers']} layers",
        flush=True,
    )


def run(args: argparse.Namespace, share: float) -> None:
    """Measure one share, and append a row as soon as it is there."""
    model = find(args.model)
    options = {"activation_sparsity": args.pattern, "phase": "decode"}
    job = {
        "model": str(model.folder),
        "options": options,
        "share": share,
        "batches": args.batches,
        "tokens": args.tokens,
        "rounds": args.rounds,
        "threads": args.threads,
        "compiled": args.compiled,
    }
    about = {
        "benchmark": "canary_cost",
        "model": args.name or model.name,
        "pattern": args.pattern,
        "share": share,
        "compiled": args.compiled,
        "timed": "first to last token",
        "tokens": args.tokens,
        "rounds": args.rounds,
    }

    def received(found: dict[str, Any]) -> None:
        row = make_row(found, about)
        report(row)
        rows.append("canary_cost", [row], folder=args.results)

    run_child(PAIR, job, threads=args.threads, received=received)


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
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0, 0.001, 0.01, 0.1]
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=480, help="to generate; 2 to 480")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="a folder")
    args = parser.parse_args()
    if not 2 <= args.tokens <= 480 or args.rounds < 1:
        parser.error("--tokens must be 2 to 480, and --rounds at least 1")
    if not all(0 <= share <= 1 for share in args.shares):
        parser.error("--shares must be 0 to 1")
    return args


def main() -> int:
    """Measure and append rows."""
    args = parse()
    kill_child_on_sigterm()
    try:
        for share in args.shares:
            run(args, share)
    except KeyboardInterrupt:
        print("stopped; rows that were measured are kept", file=sys.stderr)
        return 130
    print(f"rows appended to {args.results / 'canary_cost.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
