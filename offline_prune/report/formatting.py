"""Numbers and tables as people read them, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB")
NONE = "-"


def percent(share: float | None, digits: int = 2) -> str:
    """Return ``50.00%``."""
    return NONE if share is None else f"{share:.{digits}%}"


def number(value: float | None, digits: int = 4) -> str:
    """Return a few significant digits: ``32.19``, ``2.499e+05``, ``infinite``."""
    if value is None:
        return NONE
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    text = f"{value:#.{digits}g}"
    # No exponent where the digits before the point say as much.
    return f"{value:,.0f}" if "e+0" in text and value < 1e6 else text.rstrip(".")


def size(count: int | None) -> str:
    """Return bytes in units of 1000: ``2.47 GB``."""
    if count is None:
        return NONE
    value, unit = float(count), 0
    # 999.5 and more would be written 1000.
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    text = f"{value:.0f}" if value >= 100 or unit == 0 else f"{value:.3g}"
    return f"{text} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Return ``4.2 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def span(low: float, high: float, digits: int = 2) -> str:
    """Return ``40.00% to 60.00%``, or one share if both read the same."""
    first, last = percent(low, digits), percent(high, digits)
    return first if first == last else f"{first} to {last}"


def cell(text: str) -> str:
    """Return text that stays inside its cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table.

    Args:
        heads: of the columns.
        rows: of cells.
        left: number of columns with text, aligned to the left; the rest are numbers.
    """
    rules = [":--" if i < left else "--:" for i in range(len(heads))]
    lines = [heads, rules, *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(title: str, content: str) -> str:
    """Return content that a reader opens: long tables."""
    return f"<details>\n<summary>{title}</summary>\n\n{content}\n\n</details>"
