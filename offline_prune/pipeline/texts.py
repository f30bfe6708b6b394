"""Calibration windows for one model: its tokenizer, its vocabulary, its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from offline_prune.calibration.config import SYNTHETIC, CalibrationConfig
from offline_prune.calibration.data import (
    CalibrationSet,
    load_calibration,
    split_held_out,
)
from offline_prune.errors import InputError
from offline_prune.pipeline.source import Source

Texts = Sequence[str] | Sequence[Sequence[int]]


def needs_tokenizer(config: CalibrationConfig, texts: Texts | None) -> bool:
    """Whether the calibration reads text."""
    if texts is not None:
        return bool(texts) and isinstance(texts[0], str)
    return config.source != SYNTHETIC


def calibration_set(
    config: CalibrationConfig,
    source: Source,
    texts: Texts | None,
    *,
    held_out: int = 0,
) -> tuple[CalibrationSet, list[torch.Tensor]]:
    """Return the calibration windows of a model, and held-out ones of the same text.

    Args:
        config: the calibration.
        source: the model.
        texts: texts or rows of token ids instead of the configured source.
        held_out: number of windows to set apart.

    Raises:
        InputError: if the text or the tokenizer cannot be used.
    """
    tokenizer: Any = None
    if needs_tokenizer(config, texts):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source.path, trust_remote_code=False
            )
        except Exception as error:
            # Whatever transformers raises is the finding.
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"Model folder {source.path}: its tokenizer cannot be loaded ({text}). "
                "Expected one: complete the folder, or calibrate on token ids."
            ) from None
    if held_out:
        count = config.num_samples + held_out
        config = config.model_copy(update={"num_samples": count})
    found = load_calibration(
        config, tokenizer, vocab_size=_vocabulary(source), texts=texts
    )
    if not held_out:
        return found, []
    used, rest = split_held_out(found, held_out)
    return used, list(rest.windows)


def _vocabulary(source: Source) -> int:
    config = source.folder.config
    inner = config.get("text_config") or {}
    size = config.get("vocab_size") or inner.get("vocab_size")
    if not isinstance(size, int):
        raise InputError(
            f"Model folder {source.path}: config.json has no vocab_size. Expected one."
        )
    return size
