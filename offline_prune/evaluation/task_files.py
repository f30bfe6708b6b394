"""Tasks out of local files: ``DIR/<task>/*.jsonl`` (or .json, .parquet)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nmsparse.suggest import unknown
from offline_prune.calibration.sources import read_rows
from offline_prune.errors import InputError
from offline_prune.evaluation.tasks import TASKS

_SUFFIXES = (".jsonl", ".json", ".parquet")


def read_task(folder: Path, task: str, *, limit: int | None = None) -> list[Any]:
    """Return a task's items in the form that :data:`TASKS` gives it.

    Args:
        folder: holds a folder with the task's name.
        task: one of :data:`TASKS`.
        limit: only so many rows, from the first; all by default.

    Raises:
        InputError: if the task, its files or a field is missing.
        MissingDependencyError: if a file is parquet and pyarrow is not installed.
    """
    if task not in TASKS:
        raise InputError(
            f"Task data {folder}: {unknown('task', task, TASKS)} Other tasks come from "
            "lm-eval and the Hub: leave the folder out for them."
        )
    items: list[Any] = []
    for path in _files(folder, task):
        for place, row in read_rows(path, subject="Task data"):
            if limit is not None and len(items) >= limit:
                return items
            try:
                items.append(TASKS[task].read(row))
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                what = f"no field {error}" if isinstance(error, KeyError) else error
                raise InputError(
                    f"{place}: cannot be read as {task}: {what}. Expected a row of "
                    "this data set: check the folder."
                ) from error
    return items


def _files(folder: Path, task: str) -> list[Path]:
    """Return the task's files in the order of their names."""
    place = folder / task
    found = sorted(place.iterdir()) if place.is_dir() else []
    files = [path for path in found if path.suffix in _SUFFIXES]
    if files:
        return files
    there = sorted(path.name for path in folder.glob("*") if path.name in TASKS)
    raise InputError(
        f"Task data {folder}: no {task}/*.jsonl. Expected a folder for every task; "
        f"found {', '.join(there) or 'none'}. Add the file, or leave {task} out."
    )
