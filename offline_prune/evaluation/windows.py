"""Evaluation windows: a text encoded once and cut without overlap.

The protocol of the pruning papers (Wanda's ``lib/eval.py``): what does not fill the
last window is dropped. Perplexities of different window lengths do not compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import torch

from offline_prune.calibration.config import Bos
from offline_prune.calibration.data import hash_of
from offline_prune.calibration.encoding import Encoder
from offline_prune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class TextWindows(Sequence[torch.Tensor]):
    """Windows of one text; a sequence of int64 ``[seq_len]`` tensors.

    Attributes:
        ids: the windows.
        seq_len: tokens of each, ``<bos>`` included.
        bos: whether each begins with ``<bos>``.
        sha256: hash of the ids.
    """

    ids: tuple[torch.Tensor, ...]
    seq_len: int
    bos: bool
    sha256: str

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[torch.Tensor, ...]: ...

    def __getitem__(
        self, index: int | slice
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return one window, or several."""
        return self.ids[index]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.ids)


def windows_of(
    text: str | Sequence[int],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    seq_len: int,
    bos: Bos = "auto",
    limit: int | None = None,
) -> TextWindows:
    """Cut a text into windows.

    With ``auto``, a tokenizer that puts ``<bos>`` before a text gets it in every
    window: a model such as Gemma writes nonsense without. The papers' code has it in
    the first window only: ``never`` compares with LLaMA's published numbers.

    Args:
        text: a text, or token ids.
        tokenizer: never changed; None if ``text`` is token ids.
        seq_len: tokens of a window, ``<bos>`` included.
        bos: whether each window begins with ``<bos>``.
        limit: only so many windows; all by default.

    Raises:
        InputError: if the text has less than one window.
    """
    encoder = Encoder(tokenizer, bos=bos)
    if isinstance(text, str):
        content, lead = encoder.encode(text), encoder.text_lead()
    else:
        content, had_bos = encoder.without_bos(list(text))
        lead = encoder.ids_lead(had_bos=had_bos)
    length = seq_len - len(lead)
    count = len(content) // length if length > 0 else 0
    if count == 0:
        raise InputError(
            f"Evaluation text: found {len(content)} tokens. Expected at least one "
            f"window of {seq_len}: give more text, or a smaller seq_len."
        )
    if limit is not None:
        count = min(count, limit)
    ids = tuple(
        torch.tensor(lead + content[i * length : (i + 1) * length])
        for i in range(count)
    )
    return TextWindows(ids, seq_len, bool(lead), hash_of(ids))
