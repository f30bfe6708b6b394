"""Make an engine generate given tokens, so that decoding itself can be scored.

A token is decode only if it was generated (``docs/phases.md``). To score a known
continuation at decode, every step samples its next token, whatever the logits say;
vLLM reports log-probabilities from before that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from vllm_sparse.evaluation.engine import FORCED_KEY


class ForcedTokens(AdapterLogitsProcessor):
    """Leave one token possible in every step of a request that asks for it."""

    def is_argmax_invariant(self) -> bool:
        """Return False: it decides what is sampled."""
        return False

    def new_req_logits_processor(
        self, params: Any
    ) -> Callable[[Sequence[int], torch.Tensor], torch.Tensor] | None:
        """Return a function of the tokens so far and the logits ``[vocabulary]``."""
        wanted = (params.extra_args or {}).get(FORCED_KEY)
        if wanted is None:
            return None

        def force(output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            step = len(output_ids)
            if step >= len(wanted):
                return logits
            forced = torch.full_like(logits, -float("inf"))
            forced[wanted[step]] = 0.0
            return forced

        return force
