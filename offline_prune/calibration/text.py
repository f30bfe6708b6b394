"""A text file: one document."""

from __future__ import annotations

from pathlib import Path

from offline_prune.errors import InputError


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        InputError: if it is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8. Expected a text file in UTF-8: "
            "convert it (iconv -t utf-8)."
        ) from error
