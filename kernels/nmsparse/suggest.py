"""The did-you-mean sentence shared by every "unknown name" error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from nmsparse.errors import printable


def unknown(kind: str, name: str, available: Iterable[str]) -> str:
    """Return ``Unknown <kind> '<name>'. Did you mean: <x>? Available: <...>.``."""
    names, name = sorted(available), printable(name, limit=80)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean: {close[0]}?" if close else ""
    return f"Unknown {kind} '{name}'.{hint} Available: {', '.join(names) or 'none'}."
