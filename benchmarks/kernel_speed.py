"""Speed of the CPU kernels, product by product, against vLLM's own CPU linear.

    python benchmarks/kernel_speed.py --preset bars --threads 1 2

All modes take turns in one run, in another order every round, and each round also
measures how fast memory can be read. A number of threads has a process of its own.
docs/kernels.md says what the modes are. ``make bench-kernels`` runs this script.

It is not called ``kernels.py``: transformers imports whatever has that name, and a
script's own folder is where it looks first.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rows
import torch
from kernel_modes import (
    MODES,
    STOCK,
    Mode,
    Shape,
    Weights,
    inputs,
    modes_of,
)

from nmsparse.native import library
from vllm_sparse.plan.scan import Scan

MIB = 1 << 20
SCAN = "scan"
# A sample is this long, and has this many calls.
SAMPLE_S = 0.004
FEWEST_CALLS, MOST_CALLS = 2, 64
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

PRESETS = {
    "bars": (
        Shape("4096x14336", 4096, 14336),
        Shape("14336x4096", 14336, 4096),
        Shape("2048x16384", 2048, 16384),
        Shape("8192x2048", 8192, 2048),
        Shape("2048x3072", 2048, 3072),
    ),
    "llama-1b": (
        Shape("qkv", 2048, 3072),
        Shape("o", 2048, 2048),
        Shape("gate_up", 2048, 16384),
        Shape("down", 8192, 2048),
        Shape("lm_head", 2048, 128256),
    ),
    "qwen-0.5b": (
        Shape("qkv", 896, 1152),
        Shape("o", 896, 896),
        Shape("gate_up", 896, 9728),
        Shape("down", 4864, 896),
        Shape("lm_head", 896, 151936),
    ),
    "tiny": (Shape("layer", 64, 96), Shape("lm_head", 64, 160)),
}

Samples = dict[str, list[float]]


def timed(run: Callable[[], Any], calls: int) -> float:
    """Return seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def measure(modes: dict[str, Mode], scan: Scan, rounds: int) -> Samples:
    """Return seconds per call, one of each round, of every mode and of the scan."""
    calls: dict[str, int] = {}
    for name, mode in modes.items():
        # Every copy once: pages are touched, and oneDNN has seen this number of tokens.
        timed(mode.run, mode.copies)
        seconds = timed(mode.run, FEWEST_CALLS)
        calls[name] = min(MOST_CALLS, max(FEWEST_CALLS, int(SAMPLE_S / seconds)))
    order = [*modes, SCAN]
    samples: Samples = {name: [] for name in order}
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            if name == SCAN:
                samples[name].append(timed(scan.run, 1))
                continue
            modes[name].run()  # what the mode before left in the caches is its affair
            samples[name].append(timed(modes[name].run, calls[name]))
    gc.enable()
    return samples


def result(name: str, mode: Mode, samples: Samples, scan_bytes: int) -> dict[str, Any]:
    """Return what a row says about one mode."""
    mine, scans = samples[name], samples[SCAN]
    ratios = [s / t for s, t in zip(samples[STOCK], mine, strict=True)]
    limits = [scan_bytes / seconds for seconds in scans]
    shares = [mode.bytes_read / t / g for t, g in zip(mine, limits, strict=True)]
    seconds = statistics.median(mine)
    return {
        "mode": name,
        "speed_vs_stock_p20": rows.percentile(ratios, 20),
        "speed_vs_stock_p50": rows.percentile(ratios, 50),
        "speed_vs_stock_p80": rows.percentile(ratios, 80),
        "microseconds_p50": round(seconds * 1e6, 2),
        "bytes_read": mode.bytes_read,
        "gb_per_s": round(mode.bytes_read / seconds / 1e9, 3),
        "scan_gb_per_s": round(statistics.median(limits) / 1e9, 3),
        "roofline_fraction": round(statistics.median(shares), 4),
    }


def report(row: dict[str, Any]) -> None:
    """Print one row."""
    print(
        f"{row['preset']} {row['shape']:>10}  T {row['tokens']:>2}  "
        f"{row['threads']} thr  {row['mode']:>20}  {row['speed_vs_stock_p50']:6.2f}x "
        f"({row['speed_vs_stock_p20']:.2f} to {row['speed_vs_stock_p80']:.2f})  "
        f"{row['microseconds_p50']:10.1f} us  {row['gb_per_s']:6.1f} GB/s  "
        f"{row['roofline_fraction']:.2f} of the scan",
        flush=True,
    )


def run(args: argparse.Namespace, threads: int) -> None:
    """Measure with ``threads`` threads; append rows after every shape."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    random.seed(0)
    status = library.status()
    if not status.available:
        raise SystemExit(f"kernel_speed: {status.reason}")
    scan = Scan(args.scan_mib * MIB, threads)
    for preset in args.preset:
        for shape in PRESETS[preset]:
            weights = Weights(shape, DTYPES[args.dtype], args.weights_mib * MIB)
            names = modes_of(shape, args.modes)
            found: list[dict[str, Any]] = []
            for tokens in args.tokens:
                xs = inputs(tokens, weights)
                modes = {name: MODES[name](weights, xs) for name in names}
                samples = measure(modes, scan, args.rounds)
                about = {
                    "benchmark": "kernels",
                    "preset": preset,
                    "shape": shape.name,
                    "K": shape.in_features,
                    "O": shape.out_features,
                    "tokens": tokens,
                    "threads": threads,
                    "dtype": args.dtype,
                    "isa": status.isa,
                    "rounds": args.rounds,
                }
                for name, mode in modes.items():
                    row = about | result(name, mode, samples, scan.nbytes)
                    found.append(row)
                    report(row)
            rows.append("kernels", found, folder=args.results)
    print(f"rows appended to {args.results / 'kernels.jsonl'}")


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=["bars"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--weights-mib",
        type=int,
        default=256,
        help="all copies of a weight in one form have at least this size: "
        "several times the L3 cache",
    )
    parser.add_argument("--scan-mib", type=int, default=256, help="see --weights-mib")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="a folder")
    return parser.parse_args()


def main() -> int:
    """Measure here, or in one process for every number of threads."""
    args = parse()
    if [os.environ.get("OMP_NUM_THREADS")] == [str(n) for n in args.threads]:
        run(args, args.threads[0])
        return 0
    for threads in args.threads:
        # The last --threads wins. oneDNN's primitives keep the number of threads they
        # were made for, so one process cannot measure several.
        command = [sys.executable, *sys.argv, "--threads", str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
