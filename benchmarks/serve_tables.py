"""Tables of servers under load: ``serve_load.py`` and ``soak.py``."""

from __future__ import annotations

from typing import Any

import rows

_NO_ROWS = "No rows yet."


def load() -> str:
    """Return throughput and latency by concurrency, one line a mode."""
    lines = [
        "| model | concurrency | mode | tokens/s | vs stock (least to most) | "
        "TTFT p50, p95 (ms) | ITL p50, p95 (ms) | rounds | measured |",
        "|---" * 9 + "|",
    ]
    keys = ("model", "hardware", "concurrency", "mode")
    found = rows.newest("serve_load", *keys)
    if not found:
        return _NO_ROWS
    for row in found:
        ratio = "1" if row["mode"] == "stock" else _ratio(row)
        cells = [
            row["model"],
            row["concurrency"],
            row["mode"],
            f"{row['output_tokens_per_s']:.1f}",
            ratio,
            f"{row['ttft_p50_ms']:.0f}, {row['ttft_p95_ms']:.0f}",
            f"{row['itl_p50_ms']:.0f}, {row['itl_p95_ms']:.0f}",
            row["rounds"],
            _where(row),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def soak() -> str:
    """Return every soak, failed ones too."""
    lines = [
        "| model | mode | minutes | requests | errors | MiB at start, after warm-up, "
        "at end | growth (MiB a minute) | counters that fell | failed polls | "
        "latency, last third to first | verdict | measured |",
        "|---" * 12 + "|",
    ]
    found = rows.read("soak")
    if not found:
        return _NO_ROWS
    for row in found:
        memory = (
            f"{sum(x[field] for x in row['processes']):,.0f}"
            for field in ("rss_start_mib", "rss_warm_mib", "rss_end_mib")
        )
        cells = [
            row["model"],
            row["mode"],
            f"{row['minutes']:g}",
            sum(row["requests"].values()),
            row["errors"],
            ", ".join(memory),
            f"{row['slope_mib_per_minute']:.2f}",
            row["problems"],
            f"{row['poll_errors']:.0f}" if "poll_errors" in row else "not counted",
            f"{row['itl_drift']:.2f}x" if "itl_drift" in row else "",
            "passed" if row["passed"] else "failed",
            _where(row),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _ratio(row: dict[str, Any]) -> str:
    low, middle, high = (row[f"speed_vs_stock{x}"] for x in ("_min", "", "_max"))
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def _where(row: dict[str, Any]) -> str:
    note = f"; {row['note']}" if "note" in row else ""
    return f"{row['date']}, {row['hardware']}{note}"
