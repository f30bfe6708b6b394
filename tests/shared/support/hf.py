"""Transformers models whose linears are hooked with the reference op: the oracle."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from nmsparse import parse_pattern, sparsify


def prompt_logprobs(
    folder: Path, prompts: list[list[int]], pattern: str, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return ``[len(prompt), vocabulary]`` log-probabilities for every prompt.

    The input of every linear of the decoder blocks is sparsified; the head is not.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    chosen = parse_pattern(pattern)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(lambda _, x: (sparsify(x[0], chosen),))
    with torch.inference_mode():
        return [
            model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            for ids in prompts
        ]
