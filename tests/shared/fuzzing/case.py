"""What a target of the fuzzer is, and what may happen to a case."""

from __future__ import annotations

import random
from typing import Protocol


class Finding(AssertionError):
    """A file was accepted that an independent check refuses."""


class Target(Protocol):
    """One reader under test; ``name`` is its name on the command line."""

    name: str
    # What the reader may raise: its documented errors. Anything else is a finding.
    errors: tuple[type[Exception], ...]

    def make(self, rng: random.Random) -> dict[str, bytes]:
        """Return the files of a case, by name."""

    def read(self, files: dict[str, bytes]) -> None:
        """Read a case and check what was accepted.

        Raises:
            Finding: if it should have been refused.
        """


def accepted(target: Target, files: dict[str, bytes]) -> bool:
    """Run one case; return whether it was accepted, or let a finding out."""
    try:
        target.read(files)
    except target.errors as error:
        message = str(error)
        if not message or len(message) > 20_000:
            raise Finding(f"an error of {len(message)} characters") from error
        if any(ord(c) < 32 and c != "\n" for c in message):
            raise Finding(f"control characters in {message!r}") from error
        return False
    return True
