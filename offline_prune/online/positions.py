"""Which tokens of a forward pass are sparsified: phase, prompt length, first token.

The rules are those of the engine: a token at or beyond the length of its sequence's
prompt is decode, any other prefill, and nothing else enters.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nmsparse.config import Phase


@dataclass(frozen=True, slots=True)
class Policy:
    """Which tokens are sparsified.

    Attributes:
        phase: prompt tokens, tokens beyond the prompt, or both.
        prompt_len: tokens of the prompt, one for all sequences or one for each; None
            if it does not matter.
        dense_first_token: whether position 0 stays dense in every phase.
        enabled: False for a dense model.
    """

    phase: Phase
    prompt_len: int | tuple[int, ...] | None = None
    dense_first_token: bool = False
    enabled: bool = True

    @property
    def all_tokens(self) -> bool:
        """Whether positions do not matter."""
        return self.phase is Phase.BOTH and not self.dense_first_token

    def select(self, positions: torch.Tensor) -> torch.Tensor:
        """Return which tokens are sparsified, bool ``[B, T]``.

        Args:
            positions: int64 ``[B, T]``, of every token in its sequence.

        Raises:
            ValueError: if the phase needs the length of the prompt, and it is not
                known, or known for another number of sequences.
        """
        chosen = torch.ones_like(positions, dtype=torch.bool)
        if self.phase is not Phase.BOTH:
            decode = positions >= self._lengths(positions)
            chosen = decode if self.phase is Phase.DECODE else ~decode
        return chosen & (positions > 0) if self.dense_first_token else chosen

    def _lengths(self, positions: torch.Tensor) -> torch.Tensor:
        """Return prompt lengths, int64 ``[1 or B, 1]``."""
        if self.prompt_len is None:
            raise ValueError(
                f"Emulation: phase {self.phase.value} without the length of the "
                "prompt. Expected prompt_len, a number of tokens for every sequence."
            )
        given = self.prompt_len
        lengths = list(given) if isinstance(given, tuple) else [given]
        if len(lengths) not in (1, len(positions)):
            raise ValueError(
                f"Emulation: {len(lengths)} prompt lengths for {len(positions)} "
                "sequences. Expected one, or one for each."
            )
        return torch.tensor(lengths, device=positions.device)[:, None]


def prompt_lengths(
    given: int | Sequence[int] | None,
) -> int | tuple[int, ...] | None:
    """Return prompt lengths in the form that a policy keeps."""
    return given if given is None or isinstance(given, int) else tuple(given)


def token_positions(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """Return the position of every token of one call of a model, int64 ``[B, T]``.

    ``position_ids`` say it; otherwise an attention mask (padding on the left counts for
    nothing), otherwise the number of tokens in the cache.

    Args:
        model: the model that is called.
        args: its positional arguments.
        kwargs: its named arguments.

    Returns:
        None if the call has neither tokens nor embeddings.
    """
    bound = inspect.signature(model.forward).bind_partial(*args, **kwargs)
    call = {**bound.arguments, **bound.arguments.get("kwargs", {})}
    inputs = call.get("input_ids")
    inputs = call.get("inputs_embeds") if inputs is None else inputs
    if inputs is None:
        return None
    batch, tokens = inputs.shape[:2]
    given = call.get("position_ids")
    if given is not None:
        # Three rows for each sequence with multimodal rotary embeddings.
        given = given[0] if given.dim() == 3 else given
        return torch.as_tensor(given).expand(batch, tokens)
    attention = call.get("attention_mask")
    if isinstance(attention, torch.Tensor) and attention.dim() == 2:
        counted = attention.long().cumsum(-1) - 1
        return counted.clamp(min=0)[:, -tokens:]
    cache = call.get("past_key_values")
    start = int(cache.get_seq_length()) if cache is not None else 0
    places = torch.arange(start, start + tokens, device=inputs.device)
    return places.expand(batch, tokens)
