"""What an engine says about tokens: log-probabilities and its likeliest token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_sparse.evaluation.engine import FORCED_KEY


@dataclass(frozen=True, slots=True)
class Scored:
    """Consecutive tokens of one sequence, as an engine predicted them.

    Attributes:
        logprobs: log-probability of every token, in nats.
        likeliest: the token the engine found likeliest in its place.
    """

    logprobs: list[float]
    likeliest: list[int]


def perplexity(scored: Sequence[Sequence[float]]) -> float:
    """Return exp of the mean negative log-probability over all tokens.

    Args:
        scored: log-probabilities, one list a sequence.
    """
    count = sum(len(each) for each in scored)
    total = -sum(sum(each) for each in scored)
    try:
        return math.exp(total / count)
    except OverflowError:
        return math.inf


def score_prompts(llm: Any, prompts: Sequence[Sequence[int]]) -> list[Scored]:
    """Score every token of prompts but the first: all of them are prefill.

    Args:
        llm: vLLM's ``LLM``.
        prompts: token ids, at least two each.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False
    )
    outputs = llm.generate(_requests(prompts), sampling, use_tqdm=False)
    return [
        _scored(ids[1:], output.prompt_logprobs[1:])
        for ids, output in zip(prompts, outputs, strict=True)
    ]


def score_decode(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> list[Scored]:
    """Score continuations while the engine decodes them, forced.

    The first token of a continuation is predicted at the prompt's last token, which is
    prefill, so it is left out: what is returned was predicted at decode tokens.

    Args:
        llm: an engine of :func:`vllm_sparse.evaluation.engine.open_engine`.
        prompts: token ids.
        continuations: token ids, at least two each.

    Raises:
        RuntimeError: if the engine generated something else.
    """
    from vllm import SamplingParams

    sampling = [
        SamplingParams(
            temperature=0.0,
            max_tokens=len(ids),
            ignore_eos=True,
            logprobs=1,
            detokenize=False,
            extra_args={FORCED_KEY: list(ids)},
        )
        for ids in continuations
    ]
    found = []
    outputs = llm.generate(_requests(prompts), sampling, use_tqdm=False)
    for ids, output in zip(continuations, outputs, strict=True):
        done = output.outputs[0]
        if list(done.token_ids) != list(ids):
            raise RuntimeError(
                "Decode scores: the engine did not generate the tokens it was given. "
                "Expected vLLM's logits processors to be on: leave out speculative "
                "decoding and logits_processors in --engine-args."
            )
        found.append(_scored(ids[1:], done.logprobs[1:]))
    return found


def generate(
    llm: Any, prompts: Sequence[Sequence[int]], *, max_tokens: int
) -> list[list[int]]:
    """Return the greedy continuations of prompts, cut where they end by themselves.

    Args:
        llm: vLLM's ``LLM``.
        prompts: token ids.
        max_tokens: where a continuation is cut.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, detokenize=False)
    outputs = llm.generate(_requests(prompts), sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def _requests(prompts: Sequence[Sequence[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": list(ids)} for ids in prompts]


def _scored(ids: Sequence[int], entries: Sequence[Any]) -> Scored:
    logprobs, likeliest = [], []
    for token, entry in zip(ids, entries, strict=True):
        logprobs.append(float(entry[token].logprob))
        likeliest.append(min(entry, key=lambda found: entry[found].rank))
    return Scored(logprobs, likeliest)
