"""Text to token ids, without touching the tokenizer that was given.

Truncation and padding set for one call stay set in a fast tokenizer and reach the saved
``tokenizer.json`` (vllm-project/llm-compressor#1418), so both are put back after every
call. A private copy would do, and takes five seconds at 262,144 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from offline_prune.calibration.config import Bos
from offline_prune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# verbose: no warning that a whole document exceeds the model's length.
_WHOLE: dict[str, Any] = {"truncation": False, "padding": False, "verbose": False}


class Encoder:
    """Encode texts whole, and know whether a window begins with ``<bos>``.

    Args:
        tokenizer: left as it is; None if the data are token ids.
        bos: ``auto`` does what the tokenizer itself does with a text.

    Raises:
        InputError: if ``bos`` is ``always`` and there is no such token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, *, bos: Bos) -> None:
        self._tokenizer = tokenizer
        self._bos = bos
        self._bos_id: int | None = getattr(self._tokenizer, "bos_token_id", None)
        if bos == "always" and self._bos_id is None:
            raise InputError(
                "bos: always, but the tokenizer has no beginning-of-sequence token. "
                "Expected one (bos_token): set bos to auto or never."
            )

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""
        if self._tokenizer is None:
            return frozenset()
        return frozenset(self._tokenizer.all_special_ids)

    def text_lead(self) -> list[int]:
        """Return what a window of text begins with: ``[bos]`` or nothing."""
        if self._tokenizer is None or self._bos_id is None or self._bos == "never":
            return []
        if self._bos == "always":
            return [self._bos_id]
        with _as_it_was(self._tokenizer):
            first = self._tokenizer("a", **_WHOLE)["input_ids"][:1]
        return [self._bos_id] if first == [self._bos_id] else []

    def ids_lead(self, *, had_bos: bool) -> list[int]:
        """Return what a window of token ids begins with.

        Args:
            had_bos: whether the ids, as they came, began with ``<bos>``.
        """
        wanted = self._bos == "always" or (self._bos == "auto" and had_bos)
        return [self._bos_id] if wanted and self._bos_id is not None else []

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, all of them, with nothing put before or after.

        Raises:
            InputError: if there is no tokenizer.
        """
        if self._tokenizer is None:
            raise InputError(
                "Text given, but the model folder has no tokenizer. Expected token ids "
                "(a jsonl file with input_ids), or a folder with tokenizer.json."
            )
        with _as_it_was(self._tokenizer):
            encoded = self._tokenizer(text, add_special_tokens=False, **_WHOLE)
        return list(encoded["input_ids"])

    def without_bos(self, ids: list[int]) -> tuple[list[int], bool]:
        """Return the ids without a leading ``<bos>``, and whether there was one."""
        had = self._bos_id is not None and ids[:1] == [self._bos_id]
        return (ids[1:] if had else ids), had


@contextmanager
def _as_it_was(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Put truncation and padding of a fast tokenizer back afterwards."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        if truncation is not None and backend.truncation != truncation:
            backend.enable_truncation(**truncation)
        if padding is not None and backend.padding != padding:
            backend.enable_padding(**padding)
