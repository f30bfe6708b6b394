"""Speed of the GPU kernels, product by product, against cuBLAS.

    python benchmarks/gpu_kernels.py --tokens 1
    python benchmarks/gpu_kernels.py --interpret    # without a GPU: times nothing

Every mode is checked against pure torch first; one that is wrong is reported and not
timed. Then tiles are tuned, each mode is captured in a CUDA graph that rotates over
copies of the weight, and the modes take turns, in another order every round. A round
also measures a copy within the GPU's memory. docs/gpu-kernels.md says what the modes
are. ``gpu_all.sh`` runs this script and the others.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import rows
import torch
from gpu_machine import machine

SHAPES = ("4096x14336", "14336x4096", "4096x28672", "4096x6144", "4096x4096")
TINY, FEW = ("64x32", "80x72"), (1, 3, 20)
TOKENS = (1, 2, 4, 8, 16)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
INTERPRET = "TRITON_INTERPRET"


def report(row: dict[str, Any]) -> None:
    """Print one row."""
    text = f"{row['status']}: {row['reason'] or 'not timed'}"
    if "microseconds_p50" in row:
        text = (
            f"{row['speed_vs_cublas_p50']:6.2f}x ({row['speed_vs_cublas_p20']:.2f} to "
            f"{row['speed_vs_cublas_p80']:.2f})  {row['microseconds_p50']:9.1f} us  "
            f"{row['gb_per_s']:7.0f} GB/s  {row['copy_fraction']:.2f} of a copy"
        )
    where = f"{row['shape']:>11}  T {row['tokens']:>4}  {row['mode']:>22}  "
    print(where + text, flush=True)


def run(args: argparse.Namespace, device: torch.device) -> int:
    """Measure all layers; return how many modes were wrong or failed."""
    # Not above: these import Triton, which reads its environment variable then.
    from gpu_step import FAILED, WRONG, Step, cache_bytes
    from gpu_timing import Copy
    from gpu_weights import Shape, Weights, copies_for

    torch.manual_seed(0)
    random.seed(0)
    about = machine(device) | ({"commit": args.commit} if args.commit else {})
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    copy = Copy() if args.timed else None
    began, bad = time.monotonic(), 0
    for text in args.shapes:
        shape = Shape.parse(text)
        weight_bytes = shape.in_features * shape.out_features * 2
        copies = copies_for(weight_bytes, cache_bytes(device)) if args.timed else 2
        weights = Weights(shape, DTYPES[args.dtype], device, copies)
        for tokens in args.tokens:
            if args.seconds and time.monotonic() - began > args.seconds:
                print(f"left out, no time: {shape}, {tokens} tokens", flush=True)
                continue
            step = Step(
                *(weights, tokens, args.modes),
                timed=args.timed,
                most_tiles=args.tiles,
            )
            step.prepare()
            if copy is None:
                step.checked()
            else:
                step.measure(copy, args.rounds)
            where = about | {
                "benchmark": "gpu_kernels",
                "shape": text,
                "K": shape.in_features,
                "O": shape.out_features,
                "tokens": tokens,
                "dtype": args.dtype,
                "copies": copies,
                "rounds": args.rounds,
            }
            made = [where | row for row in step.rows]
            for row in made:
                report(row)
                bad += row["status"] in (WRONG, FAILED)
            if args.timed:
                rows.append("gpu_kernels", made, folder=args.results)
        del weights  # or two layers are in memory at once
    return bad


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", help="K x O, as 4096x14336")
    parser.add_argument("--tokens", type=int, nargs="+", help="T")
    parser.add_argument("--modes", nargs="+", help="all by default")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tiles", type=int, help="most tiles to try; all by default")
    parser.add_argument("--seconds", type=float, help="begin no layer after that")
    parser.add_argument("--commit", help="commit in the rows, where there is no .git")
    parser.add_argument(
        "--check", action="store_true", help="check results on the GPU, time nothing"
    )
    parser.add_argument(
        "--interpret",
        action="store_true",
        help="check results with Triton's interpreter on the CPU, time nothing",
    )
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="a folder")
    args = parser.parse_args()
    args.timed = not (args.check or args.interpret)
    args.shapes = args.shapes or (SHAPES if args.timed else TINY)
    args.tokens = args.tokens or (TOKENS if args.timed else FEW)
    return args


def main() -> int:
    """Measure and append rows; 1 if some mode is wrong or failed."""
    args = parse()
    if args.interpret:
        os.environ[INTERPRET] = "1"
        device = torch.device("cpu")
    elif torch.cuda.is_available():
        os.environ.pop(INTERPRET, None)
        device = torch.device("cuda")
    else:
        print(
            "gpu_kernels: no CUDA GPU was found. Expected one, or --interpret, which "
            "checks the kernels without.",
            file=sys.stderr,
        )
        return 2
    bad = run(args, device)
    if args.timed:
        print(f"rows appended to {args.results / 'gpu_kernels.jsonl'}")
    if bad:
        print(f"{bad} modes are wrong or failed: see above", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
