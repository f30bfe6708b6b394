"""Rows of local tasks: every one needs a text and an answer among its choices.

lm-eval scores 0 for a row whose answer it cannot find, with no more than a warning. A
file of another form would look like a model that knows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MULTIPLE_CHOICE = "multiple_choice"


def check_rows(task: Any, name: str, folder: Path) -> None:
    """Refuse rows that lm-eval's definition of a task cannot read.

    Args:
        task: of lm-eval, loaded.
        name: of the task.
        folder: with its files.

    Raises:
        ValueError: naming the first row, and what it lacks.
    """
    multiple = task.OUTPUT_TYPE == _MULTIPLE_CHOICE
    rows = list(task.eval_docs)
    if not rows:
        raise _unreadable(name, folder, "there are no rows")
    for number, row in enumerate(rows, start=1):
        try:
            problem = _problem(task, row) if multiple else _of_text(task, row)
        except Exception as error:
            # Templates and functions of any task: whatever they raise is the finding.
            problem = f"{type(error).__name__}: {error}"
        if problem:
            fields = ", ".join(sorted(map(str, row))) or "no fields"
            raise _unreadable(name, folder, f"row {number} ({fields}): {problem}")


def _of_text(task: Any, row: Any) -> str:
    """Read the text and the answer of a row without choices."""
    task.doc_to_text(row)
    task.doc_to_target(row)
    return ""


def _problem(task: Any, row: Any) -> str:
    """Return why a row of a multiple-choice task has no answer; empty if it has one."""
    choices = task.doc_to_choice(row)
    text, target = task.doc_to_text(row), task.doc_to_target(row)
    # Where contexts differ and the ending is shared, lm-eval's text is the answer.
    answer = text if getattr(task, "multiple_input", 0) else target
    answers = answer if isinstance(answer, list) else [answer]
    if answers and all(_is_among(one, choices) for one in answers):
        return ""
    return f"its answer is {answer!r}, which is none of {len(choices)} choices"


def _is_among(answer: Any, choices: Sequence[Any]) -> bool:
    """Return whether lm-eval would find an answer: an index, or the choice itself."""
    if isinstance(answer, int):
        return 0 <= answer < len(choices)
    return answer in choices


def _unreadable(name: str, folder: Path, problem: str) -> ValueError:
    return ValueError(
        f"Task data {folder / name}: {problem}. lm-eval's definition of {name} would "
        "score it 0. Expected the rows of the original data set; for rows that are "
        "prepared already, use offline-prune eval --tasks."
    )
