"""How far a pruned model's predictions are from those of its dense original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import kl_div
from tqdm import tqdm

from offline_prune.errors import InputError
from offline_prune.evaluation.logits import WindowLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Agreement of two models on windows.

    Attributes:
        kl: mean over tokens of KL(dense || model), in nats.
        top1_agreement: share of tokens at which both find the same token likeliest.
        tokens: number of predictions compared: one at every token.
        windows: number of windows.
    """

    kl: float
    top1_agreement: float
    tokens: int
    windows: int


@torch.inference_mode()
def fidelity(
    dense_model: PreTrainedModel,
    model: PreTrainedModel,
    *,
    windows: Sequence[torch.Tensor],
) -> Fidelity:
    """Compare the predictions of two models, token by token.

    Perplexity can stay the same while answers change; this does not.

    Args:
        dense_model: the reference, in evaluation mode.
        model: the pruned model, in evaluation mode.
        windows: int64 ``[T]`` each.

    Raises:
        InputError: if there are no windows or the vocabularies differ.
    """
    divergence, same, tokens = 0.0, 0, 0
    for window in tqdm(windows, desc="Fidelity", unit="window", disable=None):
        dense = WindowLogits(dense_model, window).chunks(len(window))
        pruned = WindowLogits(model, window).chunks(len(window))
        for (_, expected), (_, found) in zip(dense, pruned, strict=True):
            check_vocabularies(expected, found)
            found = found.to(expected.device)
            same += int((expected.argmax(-1) == found.argmax(-1)).sum())
            expected, found = expected.log_softmax(-1), found.log_softmax(-1)
            each = kl_div(found, expected, reduction="none", log_target=True).sum(-1)
            # Rounding makes a divergence of almost nothing negative.
            divergence += each.double().clamp(min=0).sum().item()
        tokens += len(window)
    if not tokens:
        raise InputError("Fidelity: no windows. Expected at least one: give more text.")
    return Fidelity(divergence / tokens, same / tokens, tokens, len(windows))


def check_vocabularies(expected: torch.Tensor, found: torch.Tensor) -> None:
    """Verify that two models speak of the same tokens.

    Raises:
        InputError: if their logits ``[c, vocabulary]`` differ in size.
    """
    if expected.shape[-1] != found.shape[-1]:
        raise InputError(
            f"Fidelity: vocabularies of {expected.shape[-1]} and {found.shape[-1]} "
            "tokens. Expected a pruned model and the dense model it was made from."
        )
