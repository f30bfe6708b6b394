"""Results of an evaluation as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from offline_prune.report.measurements import (
    EvaluationResult,
    FidelityResult,
    OnlineResult,
    PerplexityResult,
    ZeroShotResult,
)


def lines_of(result: EvaluationResult) -> Iterator[str]:
    """Yield one result, a line each number."""
    if isinstance(result, PerplexityResult):
        yield (
            f"perplexity {result.pruned:.4f}{_beside(result.dense)} on {result.text}, "
            f"{result.windows} windows of {result.seq_len}"
        )
    elif isinstance(result, FidelityResult):
        yield (
            f"KL to dense {result.kl:.4f} nats, same likeliest token "
            f"{result.top1_agreement:.2%}"
        )
    elif isinstance(result, OnlineResult):
        yield from _policies(result)
    elif isinstance(result, ZeroShotResult):
        for score in result.scores:
            name = f"{score.task} {score.metric}"
            yield f"{name} {score.pruned:.4f}{_beside(score.dense)}"
    else:
        yield f"mean answer {result.pruned_mean_tokens:.1f} tokens"


def _policies(result: OnlineResult) -> Iterator[str]:
    yield (
        f"online sparsity on {result.text}, {result.windows} windows of "
        f"{result.seq_len}, decode from token {result.prompt_len} on; dense is the "
        f"{result.reference}"
    )
    for one in result.policies:
        line = (
            f"  {one.policy}: perplexity {one.perplexity:.4f}, of decode tokens "
            f"{one.decode_perplexity:.4f}, KL {one.kl:.4f} nats, same likeliest token "
            f"{one.top1_agreement:.2%}"
        )
        if one.generated_kl is not None and one.generated_top1_agreement is not None:
            line += (
                f"; generated: KL {one.generated_kl:.4f}, same "
                f"{one.generated_top1_agreement:.2%}"
            )
        yield line


def _beside(dense: float | None) -> str:
    return "" if dense is None else f" (dense {dense:.4f})"
