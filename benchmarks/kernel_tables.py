"""The tables of docs/kernels.md, from rows of ``kernel_speed.py``.

Rows of one machine, one instruction set and one dtype make one table.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import rows

Row = dict[str, Any]

NO_ROWS = "No rows yet: `make bench-kernels` makes them."
NOTHING = "-"
ONE_TOKEN = (
    "8:16",
    "4:16",
    "2:4",
    "packed 50%",
    "packed 70%",
    "stream k-major",
    "stream o-major",
    "torch",
    "stock",
)
# A second measurement of the same thing: how far it is from 1 is the noise.
CONTROL = "stock again"
MORE_TOKENS = (
    "8:16",
    "4:16",
    "8:16 shared",
    "8:16 per token lists",
    "packed 50%",
    "packed 70%",
    "stream o-major",
    CONTROL,
)
MASKS = {"8:16": 1 / 2, "4:16": 1 / 4}
_WHERE = ("hardware", "isa", "dtype")
_WHAT = ("preset", "shape", "K", "O", "threads", "tokens", "mode")


def newest() -> dict[tuple[str, ...], list[Row]]:
    """Return the newest rows of every place they were measured at."""
    places: dict[tuple[str, ...], list[Row]] = {}
    for row in rows.newest("kernels", *_WHERE, *_WHAT):
        places.setdefault(tuple(row[key] for key in _WHERE), []).append(row)
    return places


def measured_last() -> list[Row]:
    """Return the newest rows of the place that the last row is from."""
    every = rows.read("kernels")
    return newest()[tuple(every[-1][key] for key in _WHERE)] if every else []


def one_token() -> str:
    """Return speed and share of the read bandwidth for T = 1."""
    head = ["layer, K x O", "threads", *ONE_TOKEN, f"{CONTROL} (p20 to p80)"]
    return _tables(head, _one_token_lines)


def more_tokens() -> str:
    """Return speed for all other T."""
    head = ["layer, K x O", "threads", "T", *MORE_TOKENS]
    return _tables(head, _more_tokens_lines)


def union_law() -> str:
    """Return how many rows several tokens read, and what that costs."""
    head = ["threads", "T"]
    for mode in MASKS:
        head += [f"{mode}: law", "rows read", "time, T = 1 is 1"]
    return _tables(head, _union_lines)


def selection() -> str:
    """Return microseconds of the selection alone."""
    head = ["K", "threads", "T", "microseconds", "share of the smallest stock product"]
    return _tables(head, _selection_lines)


def cell(row: Row | None, *, share: bool = False) -> str:
    """Return a ratio to stock, and the share of the read bandwidth in brackets."""
    if row is None:
        return NOTHING
    text = f"{row['speed_vs_stock_p50']:.2f}x"
    return f"{text} ({row['roofline_fraction']:.2f})" if share else text


def _tables(head: Sequence[str], lines: Any) -> str:
    parts = []
    for place, found in newest().items():
        body = list(lines(found))
        if body:
            hardware, isa, dtype = place
            dates = sorted({row["date"] for row in found})
            when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
            about = f"{hardware}; kernels `{isa}`; {dtype}; measured {when}."
            table = [_line(head), _line(["---"] * len(head)), *map(_line, body)]
            parts.append(f"{about}\n\n" + "\n".join(table))
    return "\n\n".join(parts) or NO_ROWS


def _line(cells: Iterable[object]) -> str:
    return "|" + "|".join(f" {cell} " for cell in cells) + "|"


def _by(found: list[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _lines(found: list[Row]) -> Iterator[tuple[str, int, list[Row]]]:
    """Yield layer, threads and rows of every line, layers in the order of rows."""
    for (preset, shape, k, o), group in _by(found, "preset", "shape", "K", "O").items():
        for (threads,), rows_of_line in sorted(_by(group, "threads").items()):
            yield _layer(preset, shape, k, o), threads, rows_of_line


def _layer(preset: str, shape: str, k: int, o: int) -> str:
    size = f"{k}x{o}"
    return size if shape == size else f"{preset} {shape}, {size}"


def _one_token_lines(found: list[Row]) -> Iterator[list[Any]]:
    for layer, threads, line in _lines([row for row in found if row["tokens"] == 1]):
        modes = {row["mode"]: row for row in line}
        cells = [cell(modes.get(mode), share=True) for mode in ONE_TOKEN]
        yield [layer, threads, *cells, _noise(modes.get(CONTROL))]


def _noise(row: Row | None) -> str:
    if row is None:
        return NOTHING
    low, middle, high = (row[f"speed_vs_stock_p{p}"] for p in (20, 50, 80))
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def _more_tokens_lines(found: list[Row]) -> Iterator[list[Any]]:
    """One line a layer: all T in a cell, separated by slashes."""
    for layer, threads, line in _lines([row for row in found if row["tokens"] > 1]):
        counts = sorted({row["tokens"] for row in line})
        at = {(row["mode"], row["tokens"]): row for row in line}
        cells = []
        for mode in MORE_TOKENS:
            texts = [cell(at.get((mode, count))) for count in counts]
            cells.append(NOTHING if set(texts) == {NOTHING} else " / ".join(texts))
        yield [layer, threads, " / ".join(map(str, counts)), *cells]


def _union_lines(found: list[Row]) -> Iterator[list[Any]]:
    """Medians over all layers, for tokens that share one walk over the rows."""
    masks = [
        row
        for row in found
        if row["mode"] in MASKS and row["bytes_read"] <= dense_bytes(row)
    ]
    single = {
        (row["preset"], row["shape"], row["threads"], row["mode"]): row
        for row in masks
        if row["tokens"] == 1
    }
    for (threads, tokens), group in sorted(_by(masks, "threads", "tokens").items()):
        cells: list[str] = []
        for mode, density in MASKS.items():
            mine = [row for row in group if row["mode"] == mode]
            read = [row["bytes_read"] / dense_bytes(row) for row in mine]
            times = [
                row["microseconds_p50"] / single[key]["microseconds_p50"]
                for row in mine
                if (key := (row["preset"], row["shape"], threads, mode)) in single
            ]
            cells.append(f"{1 - (1 - density) ** tokens:.3f}")
            cells.append(f"{statistics.median(read):.3f}" if read else NOTHING)
            cells.append(f"{statistics.median(times):.2f}" if times else NOTHING)
        yield [threads, tokens, *cells]


def _selection_lines(found: list[Row]) -> Iterator[list[Any]]:
    groups = _by(found, "K", "threads", "tokens")
    for (k, threads, tokens), group in sorted(groups.items()):
        mine = [row["microseconds_p50"] for row in group if row["mode"] == "sparsify"]
        stock = [row["microseconds_p50"] for row in group if row["mode"] == "stock"]
        if mine and stock:
            spent = statistics.median(mine)
            yield [k, threads, tokens, f"{spent:.1f}", f"{spent / min(stock):.1%}"]


def dense_bytes(row: Row) -> int:
    """Return the bytes of the whole weight."""
    return row["K"] * row["O"] * (4 if row["dtype"] == "float32" else 2)
