"""Decode speed in vLLM on a GPU: stock against this plugin, off and on.

    python benchmarks/gpu_decode.py --model llama-8b --batches 1 64
    python benchmarks/gpu_decode.py --modes 8:16 --engine eager --attention TRITON_ATTN

As ``decode.py``: every mode has a process of its own with two engines, a stock one and
the mode's, that generate in turns; each round gives a ratio, and the time between first
and last token counts. Models are shapes with random weights, which vLLM makes on the
GPU: speed is real, text is not. An N:M pattern keeps a fixed number of channels, so it
costs what it would cost with real weights.

Two engines have to fit into the GPU's memory at once: weights, KV cache and graphs of
each, and packed copies where a mode has them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import rows
from decode import result
from decode_modes import CONTROL, STOCK, Mode, kill_child_on_sigterm, run_child
from decode_modes import MODES as CPU_MODES
from gpu_decode_pair import ENGINES
from gpu_machine import driver
from gpu_models import SHAPES, config_folder

PAIR = Path(__file__).with_name("gpu_decode_pair.py")


def _pattern(pattern: str, **options: str) -> Mode:
    return Mode({"activation_sparsity": pattern, "phase": "decode", **options})


MODES: dict[str, Mode] = {
    name: CPU_MODES[name] for name in (CONTROL, "off", "8:16", "4:16", "pruned 50%")
} | {
    # Every step is sparse, also where a sparse kernel loses.
    "8:16 all steps": _pattern("8:16", sparse_steps="all"),
    "8:16 shared": _pattern("8:16", shared_lists="auto"),
    "4:16 shared": _pattern("4:16", shared_lists="auto"),
}
DEFAULT_MODES = (CONTROL, "off", "8:16", "4:16", "pruned 50%")


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
    phase = MODES[name].phase
    return [
        about
        | {"mode": engine, "phase": phase}
        | found
        | result(taken, seconds["stock"], steps)
        for engine, taken in engines.items()
    ]


def report(row: dict[str, Any]) -> None:
    """Print one row."""
    chosen = " ".join(f"{kind}={way}" for kind, way in row["ways"].items())
    print(
        f"{row['model']}  batch {row['batch']:>3}  {row['mode']:>16}  "
        f"{row['speed_vs_stock_p50']:.3f}x stock ({row['speed_vs_stock_p20']:.3f} to "
        f"{row['speed_vs_stock_p80']:.3f})  {row['tokens_per_second_p50']:.1f} "
        f"tokens/s  {chosen}",
        flush=True,
    )


def run(args: argparse.Namespace, name: str, folder: Path) -> None:
    """Measure one mode, and append a row as soon as it is there."""
    mode = MODES[name]
    job = {
        "model": str(folder),
        "options": mode.options,
        "plugin": mode.plugin,
        "pruned": mode.pruned,
        "batches": args.batches,
        "tokens": args.tokens,
        "rounds": args.rounds,
        "engine": args.engine,
        "attention": args.attention,
        "memory_share": args.memory_share,
        "kv_cache_gib": args.kv_cache_gib,
    }
    about = {
        "benchmark": "gpu_decode",
        "model": args.model,
        "weights": "random",
        "timed": "first to last token",
        "tokens": args.tokens,
        "rounds": args.rounds,
        "engine": args.engine,
        "attention": args.attention or "vLLM's default",
        "driver": driver(),
    } | ({"commit": args.commit} if args.commit else {})

    def received(found: dict[str, Any]) -> None:
        made = make_rows(name, found, about)
        for row in made:
            report(row)
        rows.append("gpu_decode", made, folder=args.results)

    run_child(PAIR, job, received=received)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="llama-8b")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=DEFAULT_MODES)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("--tokens", type=int, default=128, help="to generate")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="compile",
        help="vLLM's default; CUDA graphs without Inductor; or no graphs",
    )
    parser.add_argument("--attention", help="FLASH_ATTN, TRITON_ATTN; else vLLM's own")
    parser.add_argument(
        "--memory-share",
        type=float,
        default=0.35,
        help="of the GPU's memory that has to be free when an engine is built",
    )
    parser.add_argument("--kv-cache-gib", type=float, default=4.0)
    parser.add_argument("--commit", help="commit in the rows, where there is no .git")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="a folder")
    args = parser.parse_args()
    if args.tokens < 2 or args.rounds < 1 or min(args.batches) < 1:
        parser.error("--tokens must be at least 2, --rounds and --batches at least 1")
    return args


def main() -> int:
    """Measure mode by mode; one that fails does not keep the others from running."""
    args = parse()
    kill_child_on_sigterm()
    failed = []
    try:
        with tempfile.TemporaryDirectory() as root:
            folder = config_folder(args.model, Path(root))
            for name in args.modes:
                try:
                    run(args, name, folder)
                except SystemExit as problem:
                    print(f"{name}: {problem}", file=sys.stderr)
                    failed.append(name)
    except KeyboardInterrupt:
        print("stopped; rows that were measured are kept", file=sys.stderr)
        return 130
    print(f"rows appended to {args.results / 'gpu_decode.jsonl'}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
