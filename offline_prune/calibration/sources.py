"""Where rows come from: a file by its suffix, or the Hub."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from offline_prune.calibration.config import CalibrationConfig
from offline_prune.calibration.jsonl import JsonlRows, read_json
from offline_prune.calibration.parquet import ParquetRows
from offline_prune.calibration.text import read_text
from offline_prune.errors import InputError

SUFFIXES = (".txt", ".raw", ".jsonl", ".json", ".parquet")

Placed = tuple[str, dict[str, Any]]


def read_rows(
    path: Path, *, text_field: str = "text", subject: str = "Calibration data"
) -> Sequence[Placed]:
    """Return the rows of a local file, each with its place.

    Args:
        path: a file with one of :data:`SUFFIXES`.
        text_field: the field under which a text file's text appears.
        subject: what the file is, for errors.

    Raises:
        InputError: if it is missing, empty or of another kind.
        MissingDependencyError: if it is parquet and pyarrow is not installed.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(
            f"{subject} {path} {found}. Expected a file ({', '.join(SUFFIXES)}): check "
            "the path."
        )
    rows = _rows(path, text_field, subject)
    if not rows:
        raise InputError(f"{subject} {path} is empty. Expected text or rows.")
    return rows


def is_local(source: str) -> bool:
    """Whether a source is meant as a path, not as a data set of the Hub."""
    path = Path(source)
    return path.exists() or path.suffix in SUFFIXES or path.is_absolute()


def drawn_rows(config: CalibrationConfig, rng: random.Random) -> Iterator[Placed]:
    """Yield the rows of a source in random order.

    Raises:
        InputError: if the source cannot be read.
        MissingDependencyError: if a package for it is not installed.
    """
    if not is_local(config.source):
        from offline_prune.calibration.hub import stream_rows

        return stream_rows(config)
    rows = read_rows(Path(config.source), text_field=config.text_field)
    return (rows[index] for index in shuffled(len(rows), rng))


def shuffled(count: int, rng: random.Random) -> list[int]:
    """Return ``range(count)`` in random order."""
    order = list(range(count))
    rng.shuffle(order)
    return order


def _rows(path: Path, text_field: str, subject: str) -> Sequence[Placed]:
    if path.suffix in (".txt", ".raw"):
        text = read_text(path)
        return [(str(path), {text_field: text})] if text.strip() else []
    if path.suffix == ".jsonl":
        return JsonlRows(path)
    if path.suffix == ".json":
        return read_json(path)
    if path.suffix == ".parquet":
        return ParquetRows(path)
    raise InputError(
        f"{subject} {path}: unknown kind of file {path.suffix!r}. Expected one of "
        f"{', '.join(SUFFIXES)}: convert it, or rename it."
    )
