"""``vllm-sparse eval``: one engine after the other, dense first, then each phase."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_sparse.evaluation.texts import Windows

# Context of tasks, where neither the model nor --engine-args says less.
_TASK_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Mode:
    """One engine.

    Attributes:
        name: ``dense``, or the phase.
        model: folder or Hugging Face id.
        options: of the plugin.
    """

    name: str
    model: str
    options: Mapping[str, Any]

    @property
    def whole_windows(self) -> bool:
        """Whether perplexity over whole windows, prompts all of them, is its own.

        With phase ``decode`` it would be the dense engine's, with ``prefill`` that of
        ``both``.
        """
        return self.name not in ("decode", "prefill")

    @property
    def scores_prompts(self) -> bool:
        """Whether tokens of prompts are sparsified, if any are: tasks score those."""
        return self.name != "decode"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure; everything in it was checked.

    Attributes:
        model: folder or Hugging Face id.
        modes: engines; a dense one comes first.
        windows: of the text; None for no text.
        text_name: what people call the text.
        continuation_tokens: of what the dense engine generates, for each window.
        tasks: task objects of lm-eval.
        limit: at most so many examples of each task.
        tokenizer: of the model.
        engine: further arguments of vLLM's ``LLM``.
        source: where the configuration of sparsity came from.
    """

    model: str
    modes: Sequence[Mode]
    tokenizer: Any
    windows: Windows | None = None
    text_name: str = ""
    continuation_tokens: int = 0
    tasks: Sequence[Any] = ()
    limit: int | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    source: str = "none"


def evaluate(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield the results of each mode when it is done.

    Args:
        plan: what to measure.
    """
    from vllm_sparse.evaluation.engine import open_engine
    from vllm_sparse.evaluation.measure import (
        continue_windows,
        difference,
        measure,
    )
    from vllm_sparse.evaluation.tasks import run_tasks

    continuations: list[list[int]] = []
    dense = None
    for mode in plan.modes:
        found: dict[str, Any] = {"mode": mode.name}
        with open_engine(
            mode.model, mode.options, max_model_len=longest(plan), engine=plan.engine
        ) as llm:
            if plan.windows is not None:
                if mode.name == "dense" and plan.continuation_tokens:
                    continuations = continue_windows(
                        llm, plan.windows, max_tokens=plan.continuation_tokens
                    )
                measured = measure(llm, plan.windows, continuations=continuations)
                found |= measured.numbers()
                if not mode.whole_windows:
                    del found["perplexity"]
                if mode.name == "dense":
                    dense = measured
                elif dense is not None:
                    found |= difference(dense, measured)
            if plan.tasks and mode.scores_prompts:
                found["tasks"] = run_tasks(
                    llm, plan.tokenizer, plan.tasks, limit=plan.limit
                )
            # The engine frees its memory when nothing refers to it.
            del llm
        yield found


def longest(plan: Plan) -> int:
    """Return the tokens an engine must take in one sequence."""
    length = 0
    if plan.windows is not None:
        half = plan.windows.seq_len // 2
        length = max(plan.windows.seq_len, half + plan.continuation_tokens) + 1
    if plan.tasks:
        length = max(length, _TASK_TOKENS)
    return min(length, most_tokens(plan.model) or length)


def most_tokens(model: str) -> int | None:
    """Return how many tokens a model was made for; None if it does not say."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def record(plan: Plan, modes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return everything that is written.

    Args:
        plan: what was measured.
        modes: the results of :func:`evaluate`.
    """
    from importlib import metadata

    from vllm_sparse import __version__
    from vllm_sparse.compat import installed_vllm

    found: dict[str, Any] = {
        "model": plan.model,
        "sparsity": plan.source,
        "versions": {
            "vllm-sparse": __version__,
            "vllm": str(installed_vllm()),
            "torch": metadata.version("torch"),
        },
    }
    if plan.windows is not None:
        found["text"] = {
            "name": plan.text_name,
            "sha256": plan.windows.sha256,
            "windows": len(plan.windows.ids),
            "seq_len": plan.windows.seq_len,
            "prompt_len": plan.windows.seq_len // 2,
            "bos": plan.windows.bos,
            "continuation_tokens": plan.continuation_tokens,
        }
    if plan.tasks:
        found["tasks"] = {"limit": plan.limit, "shots": 0}
    return found | {"modes": [dict(mode) for mode in modes]}


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(results, indent=2) + "\n")
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
