"""SHA-256 of files, read in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

_PIECE = 1 << 22


def sha256_of(path: Path, *, advance: Callable[[int], object] | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Args:
        path: the file.
        advance: called with the number of bytes after each piece, for a progress bar.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            if advance is not None:
                advance(len(piece))
    return digest.hexdigest()
