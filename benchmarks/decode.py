"""Decode speed in vLLM: stock against this plugin, off and on. ``make bench`` runs it.

    python benchmarks/decode.py --model llama-1b --modes 8:16 "pruned 50%"

Every mode has a process of its own with two engines, a stock one and the mode's. They
generate in turns, so that they meet the same machine; each round gives a ratio, and
rows hold its percentiles. The stock engine is built before the plugin is registered.
"stock again" is a second stock engine: how far it is from 1 is the noise that every
other ratio has as well. The stock engine of a pruned mode runs the same pruned folder:
it is as fast as on the dense one, zeros cost vLLM what other weights cost.

Only decoding is timed: the time between first and last token that vLLM's engine core
records for each request. All requests of a batch get their first token in one step and
their last in one step, which is checked; so these are tokens - 1 steps of the batch,
with scheduling and sampling, without prefill and without the request's way in and out.

The plugin remembers which kernel was fastest for a shape. If it measured that on a busy
machine, remove ``~/.cache/vllm-sparse/dispatch-*.json`` first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import rows
from decode_modes import (
    CONTROL,
    MODES,
    STOCK,
    default_threads,
    kill_child_on_sigterm,
    run_child,
)
from models import EMBEDDED, SHAPES, Model, find, pruned_folder

PAIR = Path(__file__).with_name("decode_pair.py")


def result(seconds: list[float], stock: list[float], steps: int) -> dict[str, Any]:
    """Return the numbers of one engine; ``steps`` is how many tokens were timed."""
    ratios = [s / t for s, t in zip(stock, seconds, strict=True)]
    return {
        "speed_vs_stock_p20": rows.percentile(ratios, 20),
        "speed_vs_stock_p50": rows.percentile(ratios, 50),
        "speed_vs_stock_p80": rows.percentile(ratios, 80),
        "tokens_per_second_p50": round(steps / statistics.median(seconds), 2),
        "stock_tokens_per_second_p50": round(steps / statistics.median(stock), 2),
    }


def make_rows(name: str, found: dict[str, Any], about: dict[str, Any]) -> list[Any]:
    """Return the rows of one pair at one batch size; the control gives stock's too.

    Args:
        name: the mode.
        found: what the child printed.
        about: fields that all rows of this run share.
    """
    seconds = found.pop("seconds")
    engines = {name: seconds["mode"]}
    if name == CONTROL:
        engines = {STOCK: seconds["stock"]} | engines
    steps = found["batch"] * (about["tokens"] - 1)
    return [
        about
        | {"mode": engine, "phase": MODES[engine].phase}
        | found
        | result(taken, seconds["stock"], steps)
        for engine, taken in engines.items()
    ]


def report(row: dict[str, Any]) -> None:
    """Print one row."""
    chosen = " ".join(f"{kind}={way}" for kind, way in row["ways"].items())
    print(
        f"{row['threads']} thr  batch {row['batch']:>2}  {row['mode']:>16}  "
        f"{row['speed_vs_stock_p50']:.3f}x stock ({row['speed_vs_stock_p20']:.3f} to "
        f"{row['speed_vs_stock_p80']:.3f})  {row['tokens_per_second_p50']:.1f} "
        f"tokens/s  {chosen}",
        flush=True,
    )


def run(args: argparse.Namespace, model: Model, name: str, threads: int) -> None:
    """Measure one mode, and append a row as soon as it is there."""
    mode = MODES[name]
    folder = model.folder
    if mode.pruned:
        folder = pruned_folder(folder, mode.pruned)
    job = {
        "model": str(folder),
        "options": mode.options,
        "plugin": mode.plugin,
        "batches": args.batches,
        "tokens": args.tokens,
        "rounds": args.rounds,
        "threads": threads,
    }
    about = {
        "benchmark": "decode",
        "model": args.name or model.name,
        "timed": "first to last token",
        "tokens": args.tokens,
        "rounds": args.rounds,
    }

    def received(found: dict[str, Any]) -> None:
        made = make_rows(name, found, about)
        for row in made:
            report(row)
        rows.append("decode", made, folder=args.results)

    run_child(PAIR, job, threads=threads, received=received)


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
    modes = [name for name in MODES if name != STOCK]  # "stock again" measures both
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=48, help="to generate; 2 to 480")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[default_threads()],
        help="all cores but one by default, as vLLM's worker",
    )
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="a folder")
    args = parser.parse_args()
    if not 2 <= args.tokens <= 480 or args.rounds < 1:
        parser.error("--tokens must be 2 to 480, and --rounds at least 1")
    return args


def main() -> int:
    """Measure and append rows."""
    args = parse()
    kill_child_on_sigterm()
    try:
        model = find(args.model)
        for threads in args.threads:
            for name in args.modes:
                run(args, model, name, threads)
    except KeyboardInterrupt:
        print("stopped; rows that were measured are kept", file=sys.stderr)
        return 130
    print(f"rows appended to {args.results / 'decode.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
