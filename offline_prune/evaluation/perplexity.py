"""Perplexity as the pruning papers measure it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from offline_prune.errors import InputError
from offline_prune.evaluation.logits import WindowLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity of a model on windows.

    Attributes:
        value: ``exp(nll)``; infinite where that is beyond a float.
        nll: mean negative log-likelihood of a predicted token, in nats.
        tokens: number of predicted tokens: all but the first of every window.
        windows: number of windows.
    """

    value: float
    nll: float
    tokens: int
    windows: int


@torch.inference_mode()
def perplexity(model: PreTrainedModel, windows: Sequence[torch.Tensor]) -> Perplexity:
    """Measure perplexity: every token of a window from those before it in the window.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        windows: int64 ``[T]`` each, T >= 2.

    Raises:
        InputError: if there is no token to predict.
    """
    total, tokens = 0.0, 0
    for window in tqdm(windows, desc="Perplexity", unit="window", disable=None):
        targets = window[1:].to(model.device)
        for part, logits in WindowLogits(model, window).chunks(len(targets)):
            losses = cross_entropy(logits, targets[part], reduction="none")
            total += losses.double().sum().item()
        tokens += len(targets)
    if not tokens:
        raise InputError(
            f"Perplexity: {len(windows)} windows without a token to predict. Expected "
            "windows of at least 2 tokens: give more text."
        )
    nll = total / tokens
    try:
        value = math.exp(nll)
    except OverflowError:
        value = math.inf
    return Perplexity(value, nll, tokens, len(windows))
