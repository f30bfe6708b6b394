"""``README.md``, the model card: made new, the text of the base model's card below."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from offline_prune.report.markdown import (
    REPORT_NAME,
    kinds_table,
    reproduction,
    size_text,
    summary_table,
)
from offline_prune.report.measurements import (
    EvaluationResult,
    PerplexityResult,
    ZeroShotResult,
)
from offline_prune.report.pictures import Picture
from offline_prune.report.quality import quality_tables
from offline_prune.report.results import Results
from offline_prune.report.summary import pattern_slug, pattern_text

CARD_NAME: Final = "README.md"
# All above this line is made by us, and made again; all below is kept as it is.
BOUNDARY: Final = "<!-- Made by offline-prune. Below: the card of the base model. -->"
BASE_HEADING: Final = "## Card of the base model"

_TAGS: Final = ("sparse", "pruned", "vllm", "vllm-sparse")
# True of the base model, not of what pruning made of it.
_NOT_OURS: Final = ("model-index", "eval_results", "model_name", "metrics")
_FENCE: Final = "---"


def model_card(
    results: Results, pictures: Sequence[Picture] = (), *, existing: str = ""
) -> str:
    """Return the card: metadata, our text, then the base model's card.

    Args:
        results: of the run.
        pictures: that lie in ``figures/`` beside it.
        existing: ``README.md`` as it is: the base model's card, or an earlier one of
            ours, of which the part below the boundary is kept.
    """
    from huggingface_hub import ModelCardData

    metadata, text = split_card(existing)
    data = ModelCardData(**_metadata(results, metadata))
    parts = [_body(results, pictures), BOUNDARY]
    base = base_text(text)
    if base:
        parts.append(f"{BASE_HEADING}\n\n{base}")
    body = "\n\n".join(parts)
    return f"{_FENCE}\n{data.to_yaml().rstrip()}\n{_FENCE}\n\n{body}\n"


def split_card(content: str) -> tuple[dict[str, Any], str]:
    """Return the metadata of a card and its text.

    Metadata that cannot be read stay in the text: nothing of a card is lost.
    """
    import yaml

    from offline_prune.yaml_text import load_yaml

    content = content.removeprefix("\ufeff").replace("\r\n", "\n")
    head, separator, rest = content.removeprefix(f"{_FENCE}\n").partition(
        f"\n{_FENCE}\n"
    )
    if not content.startswith(f"{_FENCE}\n") or not separator:
        return {}, content
    try:
        data = load_yaml(head)
    except yaml.YAMLError:
        return {}, content
    return (data, rest) if isinstance(data, dict) else ({}, content)


def base_text(text: str) -> str:
    """Return the base model's part of a card's text; all of it if it is not ours."""
    _, boundary, below = text.partition(BOUNDARY)
    if not boundary:
        return text.strip()
    return below.strip().removeprefix(BASE_HEADING).strip()


def _metadata(results: Results, base: dict[str, Any]) -> dict[str, Any]:
    """Return the card's metadata: the base model's, with ours in place of some."""
    data = {k: v for k, v in base.items() if k not in _NOT_OURS}
    tags = data.pop("tags", None) or []
    tags = [tags] if isinstance(tags, str) else list(tags)
    data["tags"] = list(dict.fromkeys([*tags, *_TAGS, pattern_slug(results)]))
    data["library_name"] = "transformers"
    data.setdefault("pipeline_tag", "text-generation")
    if results.model.hub_id is not None:
        data["base_model"] = results.model.hub_id
        # Of the Hub's relations (adapter, merge, quantized, finetune) the nearest.
        data["base_model_relation"] = "quantized"
    scores = list(_scores(results.evaluation))
    if scores:
        data["model_name"] = _title(results)
        data["eval_results"] = scores
    return data


def _scores(evaluation: Sequence[EvaluationResult]) -> Iterator[Any]:
    """Yield the Hub's form of perplexities and tasks; it has none for infinity."""
    from huggingface_hub import EvalResult

    for result in evaluation:
        if isinstance(result, PerplexityResult) and math.isfinite(result.pruned):
            yield EvalResult(
                task_type="text-generation",
                dataset_type="text",
                dataset_name=result.text,
                dataset_args={"seq_len": result.seq_len},
                metric_type="perplexity",
                metric_value=round(result.pruned, 4),
            )
        elif isinstance(result, ZeroShotResult):
            for score in result.scores:
                if math.isfinite(score.pruned):
                    yield EvalResult(
                        task_type="text-generation",
                        dataset_type=score.task,
                        dataset_name=score.task,
                        dataset_args={"num_few_shot": result.shots},
                        metric_type=score.metric,
                        metric_value=round(score.pruned, 4),
                    )


def _body(results: Results, pictures: Sequence[Picture]) -> str:
    """Return our text."""
    budget = results.budget
    packed = results.sizes is not None and results.sizes.saved_format == "packed"
    shown = [picture.markdown for picture in pictures]
    parts = [
        f"# {_title(results)}",
        f"{results.model.name} with {budget.achieved:.1%} of the weights of its "
        f"{len(results.layers):,} linear layers removed "
        f"({pattern_text(results.layers)}) by vllm-sparse. Its licence and terms of "
        "use are those of the base model.",
        _use(packed=packed),
        summary_table(results),
        "## Quality",
        quality_tables(results.evaluation),
        "## Where the zeros are",
        kinds_table(results),
        *shown,
        "## Size",
        size_text(results),
        "## Reproduce",
        reproduction(results),
        f"More is in `{REPORT_NAME}`.",
    ]
    return "\n\n".join(parts)


def _use(*, packed: bool) -> str:
    """Return how to load and serve the folder."""
    install = "$ pip install 'vllm-sparse[gpu]'   # or [cpu]\n"
    if packed:
        return (
            "The weights are packed (bits and non-zero values), so vLLM needs the "
            "plugin; `offline-prune unpack` makes an ordinary folder of it:\n\n"
            f"```console\n{install}$ vllm-sparse serve FOLDER\n```"
        )
    return (
        "It is an ordinary folder of safetensors: transformers and vLLM open it as "
        "they open the base model, and are as fast as with it. To make use of the "
        "zeros, pack it and serve it with the plugin:\n\n"
        f"```console\n{install}$ offline-prune pack FOLDER --output PACKED\n"
        "$ vllm-sparse serve PACKED\n```"
    )


def _title(results: Results) -> str:
    """Return the name of the pruned model."""
    return f"{results.model.name.rstrip('/').split('/')[-1]}-{pattern_slug(results)}"
