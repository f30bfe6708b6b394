"""What commands print."""

from __future__ import annotations

from rich.console import Console, RenderableType


def say(message: str) -> None:
    """Print a result as it is; brackets are not markup."""
    Console().print(message, markup=False, highlight=False, soft_wrap=True)


def show(table: RenderableType) -> None:
    """Print a table."""
    Console().print(table)
