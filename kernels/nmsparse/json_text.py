"""JSON that others wrote: every way in which it can be wrong is a ``ValueError``."""

from __future__ import annotations

import json
from typing import Any

from nmsparse.errors import printable


def parse_json(text: str | bytes, *, strict: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        text: UTF-8 if it is bytes.
        strict: refuse also what JSON does not have (NaN, Infinity) and objects with a
            key twice, of which one would silently win.

    Raises:
        ValueError: if it is no JSON, or nested deeper than Python can read.
    """
    try:
        if not strict:
            return json.loads(text)
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key '{printable(key, limit=80)}' is there twice")
            seen.add(key)
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
