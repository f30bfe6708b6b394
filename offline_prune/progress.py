"""Progress for people: one line a step on standard error, bars from tqdm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Steps:
    """Numbered steps, each with its duration.

    Args:
        total: number of steps announced.
        console: where to write; standard error by default.
    """

    def __init__(self, total: int, *, console: Console | None = None) -> None:
        self._total = total
        self._done = 0
        self._console = console or Console(stderr=True)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step and, if it succeeds, say how long it took."""
        self._done += 1
        label = f"==> [{self._done}/{self._total}] {title}"
        self.say(label)
        start = time.monotonic()
        yield
        self.say(f"    done in {time.monotonic() - start:.1f} s")

    def say(self, text: str) -> None:
        """Write one line; brackets in ``text`` are not markup."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
