"""Which phase every token of the current step is in, on the device.

A token is *decode* when its position is at or beyond the request's prompt: the model
generated it. That depends on the request alone, so chunked prefill, mixed batches,
prefix-cache hits, preemption and speculative drafts do not change it. Rows beyond the
step's real tokens are *padding*.

The buffer is written once a step, before the forward pass and outside any CUDA graph;
the sparse layers of that step read it, so graphs replay with the right values.
"""

from __future__ import annotations

import torch

from nmsparse.config import Phase

PADDING, PREFILL, DECODE = 0, 1, 2
# What the op's integer argument means: sparsify tokens with this code, or all tokens.
PHASE_CODES = {Phase.BOTH: 0, Phase.PREFILL: PREFILL, Phase.DECODE: DECODE}


class TokenPhases:
    """Persistent per-token phase codes and running totals.

    Args:
        max_tokens: most tokens a step can have, padding included.
        device: where the model runs.

    Attributes:
        codes: ``[max_tokens]`` uint8, one of PADDING, PREFILL, DECODE.
        totals: ``[3]`` int64, tokens seen in each phase (index = code).
        tokens: on a CPU, tokens of this step; 0 in a dummy step.
    """

    def __init__(self, max_tokens: int, device: torch.device) -> None:
        self.codes = torch.zeros(max_tokens, dtype=torch.uint8, device=device)
        self.totals = torch.zeros(3, dtype=torch.int64, device=device)
        self._kinds = torch.arange(3, dtype=torch.uint8, device=device)
        self.tokens = 0
        self._code: int | None = PADDING

    def publish(self, positions: torch.Tensor, prompt_lens: torch.Tensor) -> None:
        """Set the codes of one step's tokens; the rest becomes padding.

        No host synchronisation: both arguments may live on the device.

        Args:
            positions: ``[T]`` position of every token in its sequence.
            prompt_lens: ``[T]`` prompt length of the request of every token.
        """
        tokens = positions.shape[0]
        codes = torch.where(positions >= prompt_lens, DECODE, PREFILL)
        self.codes[:tokens] = codes.to(torch.uint8)
        self.codes[tokens:] = PADDING
        self.totals += (codes == self._kinds[:, None]).sum(dim=1)
        if self.codes.is_cpu:  # once a step, so that no layer has to look
            self.tokens, self._code = tokens, self._common(tokens)

    def clear(self) -> None:
        """Mark everything as padding."""
        self.codes.zero_()
        self.tokens, self._code = 0, PADDING

    def real(self, rows: int) -> int:
        """Return how many of a layer's rows are tokens of the step. On CPUs only.

        More rows than a step can have are no tokens of it.
        """
        return 0 if rows > len(self.codes) else min(rows, self.tokens)

    def uniform(self, rows: int) -> int | None:
        """Return the code that all of a layer's rows share, None if they differ.

        Rows beyond the step's tokens are padding, for which any treatment is right. On
        CPUs only.
        """
        real = self.real(rows)
        if self._code is not None:
            return self._code if real else PADDING
        return self._common(real)

    def _common(self, tokens: int) -> int | None:
        """Return the code of the first tokens, None if they differ."""
        if not tokens:
            return PADDING
        found = self.codes[:tokens].numpy()
        return int(found[0]) if (found == found[0]).all() else None
