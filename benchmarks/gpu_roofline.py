"""What sparsity can gain on a GPU at best: a model of bytes, not a measurement.

    python benchmarks/gpu_roofline.py --tokens 1 2 4
    python benchmarks/gpu_roofline.py --bandwidth 4000 --fixed-us 2 --json
    python benchmarks/gpu_roofline.py --rows gpu-results/gpu_kernels.jsonl

With few tokens a linear layer takes as long as reading its weight, plus what every
launch of a kernel costs whatever it reads. So the model is::

    seconds = bytes of the weight that are read / bandwidth + launches * fixed

The formulas are those of ``vllm-sparse plan``. It knows linears alone. Attention, its
cache, norms and sampling take time too, which no pattern shortens, so real gains are
smaller; and from some hundred tokens on arithmetic is the limit, of which it knows
nothing either.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_models import REAL, SHAPES, Linear, linears

from vllm_sparse.plan.traffic import DENSE, Form, lists, packed, shared

FORMS: dict[str, Form] = {
    "dense": DENSE,
    "8:16": lists(1 / 2),
    "4:16": lists(1 / 4),
    "2:4": lists(1 / 2),
    "8:16 shared": shared(1 / 2),
    "packed 50%": packed(1 / 2),
    "packed 2:4": packed(1 / 2, offsets=False),
}


def step_seconds(
    model: str, form: str, *, tokens: int, bandwidth: float, fixed: float
) -> float:
    """Return the time of all linears of a model; the head stays dense.

    Args:
        model: one of ``SHAPES``.
        form: one of ``FORMS``.
        tokens: T.
        bandwidth: bytes a second.
        fixed: seconds a launch costs besides reading.
    """
    return sum(
        x.count
        * (DENSE if x.is_head else FORMS[form]).seconds(x, tokens, bandwidth, fixed)
        for x in linears(model)
    )


def ceiling(
    model: str, form: str, *, tokens: int = 1, bandwidth: float = 1, fixed: float = 0
) -> float:
    """Return how much faster a step can be; bytes alone decide if ``fixed`` is 0."""
    cost = {"tokens": tokens, "bandwidth": bandwidth, "fixed": fixed}
    return step_seconds(model, "dense", **cost) / step_seconds(model, form, **cost)


def layer_ceiling(
    linear: Linear,
    form: str,
    *,
    tokens: int = 1,
    bandwidth: float = 1,
    fixed: float = 0,
) -> float:
    """Return how much faster one layer can be."""
    dense = DENSE.seconds(linear, tokens, bandwidth, fixed)
    return dense / FORMS[form].seconds(linear, tokens, bandwidth, fixed)


def predictions(
    model: str, tokens: int, bandwidth: float | None, fixed: float
) -> Iterator[dict[str, Any]]:
    """Yield what the model says about every layer of every form, and about a step.

    Args:
        model: one of ``SHAPES``.
        tokens: T.
        bandwidth: bytes a second, or None: then there are bytes and ratios alone.
        fixed: seconds a launch costs besides reading; 0 without a bandwidth.
    """
    cost = {"tokens": tokens, "bandwidth": bandwidth or 1, "fixed": fixed}
    for name, form in FORMS.items():
        about = {"model": model, "form": name, "tokens": tokens}
        read: dict[str, float] = {}
        for x in linears(model):
            used = DENSE if x.is_head else form
            read[x.name] = used.read(x, tokens) * x.count
            found = {
                "layer": x.name,
                "K": x.in_features,
                "O": x.out_features,
                "count": x.count,
                "bytes": round(used.read(x, tokens)),
                "ceiling": layer_ceiling(x, "dense" if x.is_head else name, **cost),
            }
            if bandwidth:
                found["microseconds"] = used.seconds(x, **cost) * 1e6
            yield about | found
        step = {
            "layer": "step",
            "bytes": round(sum(read.values())),
            "ceiling": ceiling(model, name, **cost),
        }
        if bandwidth:
            step["microseconds"] = step_seconds(model, name, **cost) * 1e6
        yield about | step


def measured_bandwidth(path: Path) -> float:
    """Return the median copy bandwidth of rows of ``gpu_kernels.py``, bytes a second.

    Raises:
        SystemExit: if there is none.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows = [json.loads(line) for line in text.splitlines() if line]
    found = [row["copy_gb_per_s"] for row in rows if row.get("copy_gb_per_s")]
    if not found:
        raise SystemExit(
            f"{path} has no row with copy_gb_per_s. Expected rows that gpu_kernels.py "
            "timed: run it first, or give --bandwidth."
        )
    return statistics.median(found) * 1e9


def table(found: list[dict[str, Any]]) -> str:
    """Return lines to read."""
    lines = []
    for row in found:
        size = f"{row['K']}x{row['O']}" if "K" in row else ""
        time = f"{row['microseconds']:10.1f} us" if "microseconds" in row else ""
        lines.append(
            f"{row['model']:>10}  T {row['tokens']:>2}  {row['form']:>11}  "
            f"{row['layer']:>8} {size:>12}  {row['bytes'] / 1e6:10.2f} MB  "
            f"{row['ceiling']:5.2f}x{time}"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=[*REAL])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--bandwidth", type=float, help="GB/s; without it, bytes and ratios alone"
    )
    parser.add_argument(
        "--rows",
        type=Path,
        help="rows of gpu_kernels.py: the copy bandwidth they measured is taken",
    )
    parser.add_argument(
        "--fixed-us",
        type=float,
        default=0.0,
        help="microseconds that a launch costs, whatever it reads",
    )
    parser.add_argument("--json", action="store_true", help="one object a line")
    args = parser.parse_args()
    if args.rows and args.bandwidth:
        parser.error("--rows and --bandwidth are given. Expected one of them")
    if args.fixed_us and not (args.rows or args.bandwidth):
        parser.error("--fixed-us needs --bandwidth or --rows: bytes are no time")
    if min(args.tokens) < 1:
        parser.error("--tokens must be at least 1")
    return args


def main() -> int:
    """Print the model's numbers."""
    args = parse()
    bandwidth = args.bandwidth * 1e9 if args.bandwidth else None
    if args.rows:
        bandwidth = measured_bandwidth(args.rows)
    found = [
        row
        for model in args.models
        for tokens in args.tokens
        for row in predictions(model, tokens, bandwidth, args.fixed_us / 1e6)
    ]
    if args.json:
        print("\n".join(json.dumps(row) for row in found))
        return 0
    print("a model of bytes, not a measurement")
    if bandwidth:
        print(f"{bandwidth / 1e9:.0f} GB/s, {args.fixed_us:g} us a launch")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
