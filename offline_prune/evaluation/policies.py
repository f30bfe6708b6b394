"""Models that treat tokens differently, compared with a dense one on the same tokens.

Perplexity over whole windows, and *decode fidelity*: of the predictions that are made
at decode tokens, those at or beyond the length of the prompt. A decode token attends to
the keys and values of the prompt as its policy computed them, so with phase ``decode``
they are the dense model's, as in the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import kl_div
from tqdm import tqdm

from offline_prune.errors import InputError
from offline_prune.evaluation.fidelity import check_vocabularies
from offline_prune.evaluation.logits import WindowLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A model, and what it is called in.

    Attributes:
        model: a causal language model of transformers, in evaluation mode.
        within: returns a context, given the length of the prompt.
    """

    model: PreTrainedModel
    within: Callable[[int], AbstractContextManager[object]] = nullcontext

    def logits(self, sequence: Forced) -> WindowLogits:
        """Return the logits of a sequence."""
        return WindowLogits(
            self.model, sequence.ids, within=lambda: self.within(sequence.prompt_len)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Forced:
    """A prompt and its continuation, scored in one forward pass.

    Attributes:
        ids: int64 ``[T]``.
        prompt_len: tokens of the prompt; the others are decode.
    """

    ids: torch.Tensor
    prompt_len: int


@dataclass(frozen=True, slots=True)
class Compared:
    """How near one model is to the dense one.

    Attributes:
        perplexity: over all predicted tokens; None if only decode was measured.
        decode_perplexity: over the tokens predicted at decode tokens.
        kl: mean over decode tokens of KL(dense || model), in nats.
        top1_agreement: share of decode tokens at which both find the same token
            likeliest.
        tokens: predicted tokens, all of them.
        decode_tokens: those predicted at decode tokens.
    """

    perplexity: float | None
    decode_perplexity: float
    kl: float
    top1_agreement: float
    tokens: int
    decode_tokens: int


@torch.inference_mode()
def compare(
    dense: View,
    views: Mapping[str, View],
    *,
    sequences: Sequence[Forced],
    decode_only: bool = False,
) -> dict[str, Compared]:
    """Compare models with the dense one, each of them run once a sequence.

    Args:
        dense: the reference; it is in the result as ``dense``.
        views: the others, by name.
        sequences: with at least 2 tokens beyond the prompt.
        decode_only: whether to leave out the predictions of the prompt.

    Raises:
        InputError: if no prediction is made at a decode token, or vocabularies differ.
    """
    sums = {name: _Sums() for name in ("dense", *views)}
    for one in tqdm(sequences, desc="Policies", unit="window", disable=None):
        count = len(one.ids) - 1
        start = min(one.prompt_len, count) if decode_only else 0
        targets = one.ids[1:].to(dense.model.device)
        chunks = {
            name: view.logits(one).chunks(count, start=start)
            for name, view in views.items()
        }
        for part, logits in dense.logits(one).chunks(count, start=start):
            expected = logits.log_softmax(-1)
            first = min(max(one.prompt_len - part.start, 0), len(expected))
            sums["dense"].add(expected, expected, targets[part], first)
            for name, others in chunks.items():
                found = next(others)[1].to(expected.device)
                check_vocabularies(expected, found)
                sums[name].add(expected, found.log_softmax(-1), targets[part], first)
    return {name: each.result(decode_only) for name, each in sums.items()}


@dataclass(slots=True)
class _Sums:
    """Sums over predictions of one model."""

    loss: float = 0.0
    tokens: int = 0
    decode_loss: float = 0.0
    decode_tokens: int = 0
    divergence: float = 0.0
    same: int = 0

    def add(
        self,
        expected: torch.Tensor,
        found: torch.Tensor,
        targets: torch.Tensor,
        first: int,
    ) -> None:
        """Add predictions of consecutive tokens.

        Args:
            expected: ``[c, vocabulary]`` log-probabilities of the dense model.
            found: of this model.
            targets: int64 ``[c]``, the tokens that came.
            first: predictions before it are made at tokens of the prompt.
        """
        losses = -found.gather(1, targets[:, None])[:, 0].double()
        self.loss += losses.sum().item()
        self.tokens += len(losses)
        self.decode_loss += losses[first:].sum().item()
        self.decode_tokens += len(losses) - first
        expected, found = expected[first:], found[first:]
        self.same += int((expected.argmax(-1) == found.argmax(-1)).sum())
        each = kl_div(found, expected, reduction="none", log_target=True).sum(-1)
        # Rounding makes a divergence of almost nothing negative.
        self.divergence += each.double().clamp(min=0).sum().item()

    def result(self, decode_only: bool) -> Compared:
        """Return the means."""
        if not self.decode_tokens:
            raise InputError(
                "Decode fidelity: no prediction beyond a prompt. Expected at least 2 "
                "tokens after it: give longer windows or continuations."
            )
        return Compared(
            None if decode_only else _exp(self.loss / self.tokens),
            _exp(self.decode_loss / self.decode_tokens),
            self.divergence / self.decode_tokens,
            self.same / self.decode_tokens,
            self.tokens,
            self.decode_tokens,
        )


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
