"""Tables of what was measured: perplexity, fidelity, tasks, length of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from offline_prune.report.formatting import NONE, number, percent, table
from offline_prune.report.measurements import (
    EvaluationResult,
    FidelityResult,
    GenerationResult,
    OnlineResult,
    PerplexityResult,
    TaskScore,
    ZeroShotResult,
)

NOT_MEASURED = "Quality was not measured: no number here says how good the model is."


def quality_tables(evaluation: Sequence[EvaluationResult]) -> str:
    """Return all tables, or a sentence that nothing was measured."""
    perplexity = [x for x in evaluation if isinstance(x, PerplexityResult)]
    fidelity = [x for x in evaluation if isinstance(x, FidelityResult)]
    generation = [x for x in evaluation if isinstance(x, GenerationResult)]
    parts = []
    if perplexity:
        parts.append(_perplexity(perplexity))
    if fidelity:
        parts.append(_fidelity(fidelity))
    parts += [_online(x) for x in evaluation if isinstance(x, OnlineResult)]
    parts += [_tasks(x) for x in evaluation if isinstance(x, ZeroShotResult)]
    if generation:
        parts.append(_generation(generation))
    return "\n\n".join(parts) or NOT_MEASURED


def mean_scores(scores: Sequence[TaskScore]) -> tuple[float | None, float, int]:
    """Return the mean scores, dense then pruned, and over how many tasks.

    Both means are over the same tasks: those that were measured on both models, or all
    if none was.
    """
    both = [score for score in scores if score.dense is not None] or list(scores)
    pruned = sum(score.pruned for score in both) / len(both)
    dense = [score.dense for score in both if score.dense is not None]
    return (sum(dense) / len(dense) if dense else None), pruned, len(both)


def _perplexity(results: Sequence[PerplexityResult]) -> str:
    rows = [
        (
            x.text,
            f"{x.tokens:,}",
            str(x.seq_len),
            number(x.dense),
            number(x.pruned),
            _ratio(x.pruned, x.dense),
        )
        for x in results
    ]
    heads = ("Perplexity on", "Tokens", "Window", "Dense", "Pruned", "Pruned / dense")
    text = table(heads, rows)
    if any(x.bos for x in results):
        text += "\n\nEvery window begins with the token of the beginning."
    return text


def _fidelity(results: Sequence[FidelityResult]) -> str:
    rows = [
        (x.text, f"{x.tokens:,}", number(x.kl), percent(x.top1_agreement))
        for x in results
    ]
    heads = ("Same predictions as dense on", "Tokens", "KL (nats)", "Same likeliest")
    return table(heads, rows)


def _online(result: OnlineResult) -> str:
    rows = [
        (
            x.policy,
            number(x.perplexity),
            number(x.decode_perplexity),
            number(x.kl),
            percent(x.top1_agreement),
            number(x.generated_kl),
            NONE
            if x.generated_top1_agreement is None
            else percent(x.generated_top1_agreement),
        )
        for x in result.policies
    ]
    heads = (
        f"Online sparsity on {result.text}",
        "Perplexity",
        "of decode tokens",
        "KL (nats)",
        "Same likeliest",
        "KL, generated",
        "Same, generated",
    )
    return (
        table(heads, rows)
        + f"\n\nEmulated with transformers: {result.windows} windows of "
        f"{result.seq_len} tokens, decode tokens from {result.prompt_len} on; dense is "
        f"the {result.reference}."
    )


def _tasks(result: ZeroShotResult) -> str:
    rows = [
        (
            score.task,
            score.metric,
            _score(score.dense, score.dense_stderr),
            _score(score.pruned, score.pruned_stderr),
            _points(score.pruned, score.dense),
        )
        for score in result.scores
    ]
    if len(rows) > 1:
        dense, pruned, count = mean_scores(result.scores)
        mean = (f"mean of {count}", "", percent(dense), percent(pruned))
        rows.append((*mean, _points(pruned, dense)))
    heads = ("Task", "Metric", "Dense", "Pruned", "Points")
    shots = "without examples" if not result.shots else f"{result.shots} examples each"
    return (
        table(heads, rows, left=2)
        + f"\n\nBoth models on {result.backend}, {shots}; plus or minus one standard "
        "error."
    )


def _generation(results: Sequence[GenerationResult]) -> str:
    rows = [
        (
            f"{x.prompts} prompts, at most {x.max_new_tokens} tokens",
            number(x.dense_mean_tokens),
            number(x.pruned_mean_tokens),
            _ratio(x.pruned_mean_tokens, x.dense_mean_tokens),
        )
        for x in results
    ]
    heads = ("Mean length of an answer", "Dense", "Pruned", "Pruned / dense")
    return table(heads, rows)


def _score(value: float | None, error: float | None) -> str:
    if value is None:
        return NONE
    return percent(value) + ("" if error is None else f" ± {100 * error:.2f}")


def _points(pruned: float, dense: float | None) -> str:
    return NONE if dense is None else f"{100 * (pruned - dense):+.2f}"


def _ratio(pruned: float, dense: float | None) -> str:
    if dense is None or not dense or not math.isfinite(pruned / dense):
        return NONE
    return number(pruned / dense)
