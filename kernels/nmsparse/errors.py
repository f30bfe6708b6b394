"""The error of a configuration, and text from files made fit for a message."""

from __future__ import annotations


class ConfigError(ValueError):
    """A sparsity configuration that cannot be used; the message says how to mend it."""


def printable(text: object, *, limit: int = 500) -> str:
    """Return ``text`` for a message: cut, and with control characters escaped.

    What others wrote into a file must not forge lines of a log or move a terminal's
    cursor.

    Args:
        text: anything; ``str()`` is taken.
        limit: characters that are kept.
    """
    found = str(text)
    cut = f"{found[:limit]}... ({len(found)} characters)"
    shown = found if len(found) <= limit else cut
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown
    )
