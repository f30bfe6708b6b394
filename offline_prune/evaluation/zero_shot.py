"""Zero-shot accuracy through lm-eval, from local files or from the Hub.

lm-eval (EleutherAI/lm-evaluation-harness) builds the requests, runs the model and
scores; local files replace nothing but the download. Different backends score
differently (lm-evaluation-harness#2851), so both models of a comparison go through
:func:`zero_shot`.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_prune.calibration.config import Bos
from offline_prune.calibration.encoding import Encoder
from offline_prune.errors import InputError, MissingDependencyError
from offline_prune.evaluation.task_files import read_task
from offline_prune.evaluation.tasks import PAPER_TASKS, TASKS, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_VERSION = 1.0


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task.

    Attributes:
        task: such as ``hellaswag``.
        metric: such as ``acc_norm``.
        value: the score.
        stderr: standard error of an accuracy; None for other metrics.
        examples: how many were scored; None if lm-eval does not say.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    examples: int | None


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """Scores of one model.

    Attributes:
        backend: what ran it, with its version.
        scores: by task, in the order asked for.
    """

    backend: str
    scores: tuple[Score, ...]


def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tasks: Sequence[str] = PAPER_TASKS,
    task_data: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    bos: Bos = "auto",
) -> ZeroShot:
    """Score a model on tasks without examples.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: never changed.
        tasks: names; with ``task_data`` those of :data:`TASKS`, otherwise any of
            lm-eval's, whose data come from the Hub.
        task_data: folder with ``<task>/*.jsonl``: no network is used.
        limit: only the first examples of each task.
        batch_size: requests at a time; the logits of all are in memory at once.
        bos: whether a context begins with ``<bos>``.

    Raises:
        InputError: if a task or its data is missing.
        MissingDependencyError: if lm-eval is not installed.
    """
    lm_eval = _require("lm_eval")
    if not tasks:
        raise InputError(
            f"Zero-shot: no task. Expected names such as {', '.join(PAPER_TASKS)}."
        )
    manager_class = import_module("lm_eval.tasks").TaskManager
    if task_data is not None:
        folder = Path(task_data)
        wanted: list[Any] = [
            local_task(name, read_task(folder, name, limit=limit)) for name in tasks
        ]
        # Reading the definitions of 10,000 other tasks takes longer than a small run.
        manager = manager_class(include_defaults=False)
    else:
        manager, wanted = manager_class(), list(tasks)
        for name in tasks:
            _check_known(name, manager.all_tasks)
    lead = Encoder(tokenizer, bos=bos).text_lead()
    runner = import_module("lm_eval.models.huggingface").HFLM(
        pretrained=model,
        # lm-eval sets a padding token and the padding side.
        tokenizer=copy.deepcopy(tokenizer),
        batch_size=batch_size,
        add_bos_token=bool(lead),
    )
    try:
        results = lm_eval.simple_evaluate(
            model=runner,
            tasks=wanted,
            task_manager=manager,
            num_fewshot=0,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
        )
    except OSError as error:
        if task_data is not None:
            raise
        raise InputError(
            f"Zero-shot: the data of {', '.join(tasks)} cannot be loaded ({error}). "
            "Expected a network that reaches the Hub, or a folder with local files of "
            "the tasks (task_data)."
        ) from error
    version = getattr(lm_eval, "__version__", None) or _version()
    return ZeroShot(f"lm-eval {version} (transformers)", _scores(results))


def local_task(name: str, items: Sequence[Mapping[str, Any]]) -> Any:
    """Return a task object of lm-eval whose documents are at hand.

    Args:
        name: one of :data:`TASKS`.
        items: its items, as the task's ``read`` makes them.
    """
    configurable = import_module("lm_eval.api.task").ConfigurableTask
    documents = import_module("datasets").Dataset.from_list([dict(i) for i in items])

    def download(self: Any, *_: Any, **__: Any) -> None:
        self.dataset = {"test": documents}

    local = type("LocalTask", (configurable,), {"download": download})
    return local(config=_task_config(name, TASKS[name]))


def _task_config(name: str, task: Task) -> dict[str, Any]:
    """Return the configuration that lm-eval's own task has, over our fields."""
    fields = {
        "choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "query",
            "doc_to_target": "gold",
            "doc_to_choice": "choices",
        },
        # A number as text tells lm-eval that the choices are contexts.
        "contexts": {
            "output_type": "multiple_choice",
            "doc_to_text": "gold",
            "doc_to_target": "target",
            "doc_to_choice": "choices",
        },
        "continuation": {
            "output_type": "loglikelihood",
            "doc_to_text": "query",
            "doc_to_target": "target",
        },
    }[task.form]
    metrics = [
        {
            "metric": metric,
            "aggregation": "perplexity" if metric == "perplexity" else "mean",
            "higher_is_better": metric != "perplexity",
        }
        for metric in task.metrics
    ]
    return {
        "task": name,
        "test_split": "test",
        "num_fewshot": 0,
        "metric_list": metrics,
        "metadata": {"version": _VERSION},
        **fields,
    }


def _scores(results: Mapping[str, Any]) -> tuple[Score, ...]:
    """Read lm-eval's results, ``{"acc,none": 0.5, "acc_stderr,none": ...}``."""
    scores = []
    for task, metrics in results["results"].items():
        counts = results.get("n-samples", {}).get(task, {})
        examples = counts.get("effective")
        for key, value in metrics.items():
            metric, comma, _ = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = _stderr(metric, value, examples)
            scores.append(Score(task, metric, float(value), error, examples))
    return tuple(scores)


def _stderr(metric: str, value: float, examples: int | None) -> float | None:
    """Return the standard error of a mean of zeros and ones, as lm-eval computes it."""
    if not metric.startswith("acc") or examples is None or examples < 2:
        return None
    return math.sqrt(value * (1 - value) / (examples - 1))


def _check_known(name: str, available: Sequence[str]) -> None:
    if name not in available:
        close = difflib.get_close_matches(name, available, n=3)
        hint = f" Did you mean: {', '.join(close)}?" if close else ""
        raise InputError(
            f"Unknown task {name!r}.{hint} Expected a task of lm-eval (lm-eval ls "
            "tasks), or a folder with its data."
        )


def _require(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"Zero-shot tasks: the package {error.name or name} is not installed. "
            'Expected lm-eval: pip install "vllm-sparse[eval]"'
        ) from error


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")
