"""An engine as lm-eval's language model: tasks that score continuations.

lm-eval builds requests and scores answers. Its own vLLM backend starts an engine by
itself and cannot be given ours; this one asks for log-probabilities of prompts, so
every scored token is prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM

from vllm_sparse.evaluation.scores import score_prompts


class EngineLM(TemplateLM):
    """Score continuations with an engine.

    Args:
        llm: vLLM's ``LLM``.
        tokenizer: of transformers; it decides about ``<bos>``.
        max_length: tokens an engine takes; what is beyond is cut off at the left.
    """

    def __init__(self, llm: Any, tokenizer: Any, *, max_length: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._llm = llm
        self._max_length = max_length

    @property
    def eot_token_id(self) -> int:
        """Token at the end of a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Token that stands for an empty context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids of a text."""
        special = True if add_special_tokens is None else add_special_tokens
        encoded = self.tokenizer(string, add_special_tokens=special, verbose=False)
        return list(encoded["input_ids"])

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        prompts = [
            (context + continuation)[-self._max_length :]
            for _, context, continuation in requests
        ]
        found = []
        scored = score_prompts(self._llm, prompts)
        for (_, _, continuation), ids, one in zip(
            requests, prompts, scored, strict=True
        ):
            # The first token of a sequence is never predicted.
            count = min(len(continuation), len(ids) - 1)
            likeliest = one.likeliest[len(one.likeliest) - count :]
            greedy = likeliest == ids[len(ids) - count :]
            total = sum(one.logprobs[len(one.logprobs) - count :])
            found.append((total, greedy))
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """Refuse: see :func:`vllm_sparse.evaluation.tasks.load_tasks`."""
        raise NotImplementedError("EngineLM scores continuations only")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """Refuse: see :func:`vllm_sparse.evaluation.tasks.load_tasks`."""
        raise NotImplementedError("EngineLM scores continuations only")
