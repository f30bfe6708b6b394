"""Zero-shot tasks of lm-eval, from the Hub or from local files, through an engine."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vllm_sparse.evaluation.task_rows import check_rows

_SPLITS = ("train", "validation", "test")
_SCORED = ("multiple_choice", "loglikelihood")


def load_tasks(names: Sequence[str], folder: Path | None) -> list[Any]:
    """Return task objects of lm-eval.

    Args:
        names: of lm-eval's tasks.
        folder: has ``<task>/*.jsonl`` with the fields of the original data set, in the
            place of its download; None for the Hub. lm-eval's definition of the task
            stays as it is.

    Raises:
        ValueError: if a task is unknown, has no files, or needs generated text.
        RuntimeError: if lm-eval is not installed, or data cannot be had.
    """
    manager = _lm_eval("lm_eval.tasks").TaskManager()
    for name in names:
        if name not in manager.all_subtasks:
            close = difflib.get_close_matches(name, manager.all_subtasks, n=3)
            hint = f" Did you mean: {', '.join(close)}?" if close else ""
            raise ValueError(
                f"Unknown task {name!r}.{hint} Expected a task of lm-eval (lm-eval ls "
                "tasks)."
            )
    try:
        if folder is None:
            loaded = manager.load(list(names))["tasks"]
        else:
            # Tasks hold their rows in memory once they are loaded.
            with TemporaryDirectory(prefix="vllm-sparse-tasks-") as temporary:
                loaded = {}
                for name in names:
                    written = _local(manager, name, folder, Path(temporary))
                    loaded |= _load_rows(manager, name, written, folder)
    except OSError as error:
        raise RuntimeError(
            f"Tasks: the data of {', '.join(names)} cannot be loaded ({error}). "
            "Expected a network that reaches the Hub, or a folder with local files "
            "(--task-data)."
        ) from error
    return _check(loaded.values())


def run_tasks(
    llm: Any, tokenizer: Any, tasks: Sequence[Any], *, limit: int | None
) -> dict[str, dict[str, float]]:
    """Return the scores of an engine, by task and metric.

    Args:
        llm: vLLM's ``LLM``.
        tokenizer: of transformers.
        tasks: of :func:`load_tasks`.
        limit: at most so many examples of each; all if None.
    """
    from vllm_sparse.evaluation.language_model import EngineLM

    longest = int(llm.llm_engine.model_config.max_model_len) - 1
    results = _lm_eval("lm_eval").simple_evaluate(
        model=EngineLM(llm, tokenizer, max_length=longest),
        tasks=list(tasks),
        num_fewshot=0,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    return {task: _metrics(found) for task, found in results["results"].items()}


def _metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Read lm-eval's results of one task, ``{"acc,none": 0.5, ...}``."""
    metrics = {}
    for key, value in found.items():
        name, comma, _ = key.partition(",")
        if comma and not name.endswith("_stderr"):
            metrics[name] = float(value)
    return metrics


def _local(manager: Any, name: str, folder: Path, temporary: Path) -> str:
    """Write a task that includes lm-eval's and reads local files; return its path."""
    files = sorted(str(path.resolve()) for path in (folder / name).glob("*.jsonl"))
    if not files:
        there = sorted(x.name for x in folder.glob("*") if x.is_dir())
        raise ValueError(
            f"Task data {folder}: no {name}/*.jsonl. Expected a folder for every task; "
            f"found {', '.join(there) or 'none'}. Add the file, or leave {name} out."
        )
    local = {
        "include": str(manager.task_index[name].yaml_path),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": dict.fromkeys(_SPLITS, files),
            "cache_dir": str(temporary / "cache"),
            "keep_in_memory": True,
        },
    }
    path = temporary / f"{name}.yaml"
    path.write_text(json.dumps(local), encoding="utf-8")  # JSON is YAML
    return str(path)


def _load_rows(manager: Any, name: str, written: str, folder: Path) -> dict[str, Any]:
    """Load one local task.

    Raises:
        ValueError: if its rows lack a field that lm-eval's definition reads, or one
            has no answer among its choices.
    """
    try:
        found: dict[str, Any] = manager.load([written])["tasks"]
    except KeyError as error:
        raise ValueError(
            f"Task data {folder / name}: the rows have no field {error}, which lm-eval "
            f"reads for {name}. Expected the rows of the original data set; for rows "
            "that are prepared already, use offline-prune eval --tasks."
        ) from error
    except OSError:
        raise
    except Exception as error:
        # lm-eval tries the first row: whatever its templates raise is the finding.
        raise ValueError(
            f"Task data {folder / name}: lm-eval cannot read the rows as {name} "
            f"({type(error).__name__}: {error}). Expected the rows of the original "
            "data set; for rows that are prepared already, use offline-prune eval "
            "--tasks."
        ) from error
    for task in found.values():
        check_rows(task, name, folder)
    return found


def _check(tasks: Any) -> list[Any]:
    found = list(tasks)
    for task in found:
        if task.OUTPUT_TYPE not in _SCORED:
            raise ValueError(
                f"Task {task.config.task} asks for {task.OUTPUT_TYPE}. Expected a task "
                f"that scores continuations ({' or '.join(_SCORED)}): serve the model, "
                "and run it with lm-eval's local-completions."
            )
    return found


def _lm_eval(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise RuntimeError(
            f"Tasks: the package {error.name or module} is not installed. Expected "
            'lm-eval: pip install "vllm-sparse[eval]"'
        ) from error
