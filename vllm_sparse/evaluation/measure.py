"""Everything that is measured of one engine, and how two engines differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_sparse.evaluation.scores import (
    Scored,
    generate,
    perplexity,
    score_decode,
    score_prompts,
)
from vllm_sparse.evaluation.texts import Windows


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine.

    Attributes:
        windows: every token of the windows but the first, as prompts.
        decode: their second halves, generated after the first halves.
        generated: continuations of the first halves by the dense engine, likewise;
            empty if there is none.
    """

    windows: list[Scored]
    decode: list[Scored]
    generated: list[Scored]

    def numbers(self) -> dict[str, float]:
        """Return the perplexities."""
        return {
            "perplexity": perplexity([one.logprobs for one in self.windows]),
            "decode_perplexity": perplexity([one.logprobs for one in self.decode]),
        }


def measure(
    llm: Any, windows: Windows, *, continuations: Sequence[Sequence[int]]
) -> Measured:
    """Score windows and continuations with one engine.

    Args:
        llm: an engine of :func:`vllm_sparse.evaluation.engine.open_engine`.
        windows: of at least 4 tokens.
        continuations: of every window's first half; none if empty.
    """
    half = windows.seq_len // 2
    prompts = [ids[:half] for ids in windows.ids]
    long = [i for i, ids in enumerate(continuations) if len(ids) > 1]
    generated = score_decode(
        llm, [prompts[i] for i in long], [continuations[i] for i in long]
    )
    return Measured(
        score_prompts(llm, windows.ids),
        score_decode(llm, prompts, [ids[half:] for ids in windows.ids]),
        generated,
    )


def continue_windows(llm: Any, windows: Windows, *, max_tokens: int) -> list[list[int]]:
    """Return what an engine generates after the first half of every window."""
    half = windows.seq_len // 2
    return generate(llm, [ids[:half] for ids in windows.ids], max_tokens=max_tokens)


def difference(dense: Measured, sparse: Measured) -> dict[str, float]:
    """Return how far one engine is from another, over tokens predicted at decode."""
    found = {
        f"decode_{name}": value
        for name, value in _differ(dense.decode, sparse.decode).items()
    }
    if dense.generated:
        generated = _differ(dense.generated, sparse.generated)
        found |= {f"generated_{name}": value for name, value in generated.items()}
    return found


def _differ(dense: Sequence[Scored], sparse: Sequence[Scored]) -> dict[str, float]:
    same, apart, count = 0, 0.0, 0
    for a, b in zip(dense, sparse, strict=True):
        count += len(a.logprobs)
        same += sum(x == y for x, y in zip(a.likeliest, b.likeliest, strict=True))
        pairs = zip(a.logprobs, b.logprobs, strict=True)
        apart += sum(abs(x - y) for x, y in pairs)
    return {
        "tokens": count,
        "top1_agreement": same / count,
        "mean_logprob_difference": apart / count,
    }
