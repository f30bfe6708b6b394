"""A model's logits of one window, some tokens at a time.

The logits of 2048 tokens over a vocabulary of 262,144 are 2 GiB in float32. So the
decoder runs once, and the head on a few of its outputs at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Elements of one float32 chunk: 128 MiB, a few times over while the loss is computed.
_ELEMENTS = 2**25


class WindowLogits:
    """Logits of one window.

    The model's own ``forward`` makes them, with what it does after the head (Gemma 2
    caps, Granite and Cohere scale): it is called for each chunk, and its decoder
    returns what it returned the first time.

    Args:
        model: a causal language model of transformers.
        ids: int64 ``[T]``.
        within: what the model is called in, online sparsity for example.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: torch.Tensor,
        *,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._model = model
        self._within = within
        self._ids = ids.to(model.device)[None]
        self._decoder = model.base_model
        parameters = inspect.signature(model.forward).parameters
        self._chunked = "logits_to_keep" in parameters and self._decoder is not model
        self._kept: list[Any] = []

    def chunks(
        self, count: int, *, start: int = 0
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the logits at the first ``count`` tokens.

        Args:
            count: at most T.
            start: tokens at the beginning that are left out.

        Yields:
            Which tokens, and their logits, float32 ``[c, vocabulary]``.
        """
        config = self._model.config.get_text_config()
        rows = max(1, _ELEMENTS // config.vocab_size)
        for first in range(start, count, rows):
            part = slice(first, min(first + rows, count))
            yield part, self._logits(part)

    def _logits(self, part: slice) -> torch.Tensor:
        if not self._chunked:
            if not self._kept:
                self._kept.append(self._call().logits[0])
            return self._of_all(part)
        wanted = torch.arange(part.start, part.stop, device=self._ids.device)
        with self._decoder_once():
            logits: torch.Tensor = self._call(logits_to_keep=wanted).logits[0]
        return logits.float()

    def _of_all(self, part: slice) -> torch.Tensor:
        logits: torch.Tensor = self._kept[0]
        return logits[part].float()

    def _call(self, **arguments: Any) -> Any:
        with self._within():
            return self._model(input_ids=self._ids, use_cache=False, **arguments)

    @contextmanager
    def _decoder_once(self) -> Iterator[None]:
        """Let the decoder run at most once for this window."""
        before = self._decoder.__dict__.get("forward")
        forward = self._decoder.forward

        def once(*args: Any, **kwargs: Any) -> Any:
            if not self._kept:
                self._kept.append(forward(*args, **kwargs))
            return self._kept[0]

        self._decoder.forward = once
        try:
            yield
        finally:
            if before is None:
                del self._decoder.forward
            else:
                self._decoder.forward = before
