"""The tables of docs/gpu-kernels.md: the model of bytes, and rows of GPUs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import gpu_roofline
import rows
from gpu_models import REAL, linears

Row = dict[str, Any]

NO_ROWS = "**Nothing yet: no GPU has run this.** `benchmarks/gpu_all.sh` makes rows."
NOTHING = "-"
# What the second table of the model assumes: round numbers, of no machine.
BANDWIDTH, FIXED = 4000e9, 2e-6
MANY = (2, 4, 8)
_PLACE = ("hardware", "dtype")


def roofline() -> str:
    """Return how much faster a step can be if bytes alone decide."""
    shown = ("8:16", "4:16", "packed 50%", "packed 2:4")
    head = ["model", "linears, GB a token", *(f"{form}, T = 1" for form in shown)]
    head += [f"8:16, T = {tokens}" for tokens in MANY]
    head += [f"8:16 shared, T = {MANY[-1]}"]
    body = []
    for model, name in REAL.items():
        total = sum(x.dense_bytes * x.count for x in linears(model))
        cells = [gpu_roofline.ceiling(model, form) for form in shown]
        cells += [gpu_roofline.ceiling(model, "8:16", tokens=t) for t in MANY]
        cells += [gpu_roofline.ceiling(model, "8:16 shared", tokens=MANY[-1])]
        line = [name, f"{total / 1e9:.2f}", *(f"{cell:.2f}x" for cell in cells)]
        body.append(line)
    return "A model, not a measurement.\n\n" + _table(head, body)


def launches() -> str:
    """Return what launches leave of that, layer by layer."""
    shown = ("8:16", "4:16", "packed 50%", "packed 2:4")
    head = [REAL["llama-8b"], "K x O", "dense"]
    head += [*shown, "8:16 if its selection were no launch"]
    cost = {"tokens": 1, "bandwidth": BANDWIDTH, "fixed": FIXED}
    body = []
    for x in linears("llama-8b"):
        if x.is_head:
            continue
        dense = gpu_roofline.DENSE.seconds(x, **cost)
        line = [x.name, f"{x.in_features}x{x.out_features}", f"{dense * 1e6:.1f} us"]
        line += [
            f"{gpu_roofline.layer_ceiling(x, form, **cost):.2f}x" for form in shown
        ]
        fused = x.dense_bytes / 2 / BANDWIDTH + FIXED
        body.append([*line, f"{dense / fused:.2f}x"])
    whole = gpu_roofline.step_seconds("llama-8b", "dense", **cost)
    line = ["a step, with the head", "", f"{whole * 1e6:.0f} us"]
    line += [f"{gpu_roofline.ceiling('llama-8b', form, **cost):.2f}x" for form in shown]
    apart = gpu_roofline.step_seconds("llama-8b", "8:16", **cost)
    apart -= FIXED * sum(x.count for x in linears("llama-8b") if not x.is_head)
    body.append([*line, f"{whole / apart:.2f}x"])
    about = (
        f"A model, not a measurement: {BANDWIDTH / 1e9:.0f} GB/s and "
        f"{FIXED * 1e6:g} us a launch, round numbers of no machine. T = 1."
    )
    return f"{about}\n\n" + _table(head, body)


def kernels() -> str:
    """Return speed against cuBLAS; a table for each GPU and dtype."""
    places: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows.newest("gpu_kernels", *_PLACE, "shape", "tokens", "mode"):
        places.setdefault(tuple(row[key] for key in _PLACE), []).append(row)
    parts = [_kernels(*place, found) for place, found in places.items()]
    return "\n\n".join(parts) or NO_ROWS


def _kernels(hardware: str, dtype: str, found: list[Row]) -> str:
    modes = list(dict.fromkeys(row["mode"] for row in found))
    modes.sort(key=lambda mode: not mode.startswith("cublas"))
    lines: dict[tuple[int, str], dict[str, Row]] = {}
    for row in found:
        lines.setdefault((row["tokens"], row["shape"]), {})[row["mode"]] = row
    body = [
        [shape, tokens, *(_kernel_cell(line.get(mode)) for mode in modes)]
        for (tokens, shape), line in sorted(lines.items(), key=lambda item: item[0][0])
    ]
    copies = [row["copy_gb_per_s"] for row in found if "copy_gb_per_s" in row]
    about = f"{hardware}; {dtype}; measured {_dates(found)}"
    if copies:
        about += f"; copy {statistics.median(copies):.0f} GB/s, read and written"
    return f"{about}.\n\n" + _table(["layer, K x O", "T", *modes], body)


def _kernel_cell(row: Row | None) -> str:
    if row is None or row["status"] == "skipped":
        return NOTHING
    if "microseconds_p50" not in row:
        return str(row["status"])
    speed = f"{row['speed_vs_cublas_p50']:.2f}x, {row['microseconds_p50']:.1f} us"
    return f"{speed} ({row['copy_fraction']:.2f})"


def decode() -> str:
    """Return decode speed in vLLM against stock; a line a model, engine and mode."""
    lines: dict[tuple[Any, ...], dict[int, Row]] = {}
    where = ("hardware", "model", "engine", "attention", "mode")
    for row in rows.newest("gpu_decode", *where, "batch"):
        if row["mode"] != "stock":
            key = tuple(row[name] for name in where)
            lines.setdefault(key, {})[row["batch"]] = row
    if not lines:
        return NO_ROWS
    batches = sorted({batch for found in lines.values() for batch in found})
    head = ["model", "mode", *(f"batch {batch}" for batch in batches)]
    head += ["vLLM runs", "measured"]
    body = []
    for (hardware, model, engine, attention, mode), found in lines.items():
        cells = [_decode_cell(found.get(batch)) for batch in batches]
        when = f"{_dates(list(found.values()))}, {hardware}"
        body.append([model, mode, *cells, f"{engine}, {attention}", when])
    return _table(head, body)


def _decode_cell(row: Row | None) -> str:
    if row is None:
        return ""
    low, middle, high = (row[f"speed_vs_stock_p{p}"] for p in (20, 50, 80))
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def _dates(found: list[Row]) -> str:
    dates = sorted({row["date"] for row in found})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def _table(head: Sequence[object], body: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("|" + "|".join(f" {x} " for x in line) + "|" for line in lines)
