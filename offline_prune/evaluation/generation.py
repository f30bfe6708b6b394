"""How long a model's answers are.

A pruned model that rambles is slower than its tokens a second say: accuracy may hold
while an evaluation takes six times as long (sgl-project/sglang#32414).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from offline_prune.calibration.config import Bos
from offline_prune.calibration.encoding import Encoder
from offline_prune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Generation:
    """Lengths of greedy answers.

    Attributes:
        mean_tokens: mean number of new tokens, the end token included.
        finished: share of answers that ended by themselves.
        prompts: number of prompts.
        max_new_tokens: where an answer was cut.
    """

    mean_tokens: float
    finished: float
    prompts: int
    max_new_tokens: int


@torch.inference_mode()
def generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Sequence[str],
    max_new_tokens: int = 256,
    bos: Bos = "auto",
    within: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> Generation:
    """Answer prompts greedily and count tokens.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: never changed. If it has a chat template, a prompt is a user's turn.
        prompts: texts.
        max_new_tokens: where an answer is cut.
        bos: whether a prompt begins with ``<bos>``.
        within: returns what the model is called in, given the length of the prompt.

    Raises:
        InputError: if there is no prompt.
    """
    if not prompts:
        raise InputError("Generation: no prompts. Expected at least one text.")
    encoder = Encoder(tokenizer, bos=bos)
    chat = bool(getattr(tokenizer, "chat_template", None))
    new, finished = 0, 0
    for prompt in tqdm(prompts, desc="Generation", unit="prompt", disable=None):
        text = prompt
        if chat:
            turn = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True
            )
        content, _ = encoder.without_bos(encoder.encode(text))
        ids = torch.tensor([encoder.text_lead() + content], device=model.device)
        with within(ids.shape[1]):
            output = greedy(model, ids[0], max_new_tokens=max_new_tokens)
        answer = output[ids.shape[1] :].tolist()
        new += len(answer)
        finished += bool(answer) and answer[-1] in _end_ids(model)
    count = len(prompts)
    return Generation(new / count, finished / count, count, max_new_tokens)


def greedy(
    model: PreTrainedModel, prompt: torch.Tensor, *, max_new_tokens: int
) -> torch.Tensor:
    """Return a prompt with the model's greedy continuation, int64 ``[T]``.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        prompt: int64 ``[P]``.
        max_new_tokens: where the continuation is cut, if it does not end before.
    """
    ids = prompt.to(model.device)[None]
    output: torch.Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
    )
    return output[0]


def _end_ids(model: PreTrainedModel) -> list[int]:
    end = model.generation_config.eos_token_id
    return [end] if isinstance(end, int) else list(end or [])
