"""Rows that are token ids already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offline_prune.errors import InputError


def check_ids(value: Any, *, vocab_size: int, place: str) -> list[int]:
    """Return a row of token ids.

    Args:
        value: what the row holds.
        vocab_size: rows of the model's embedding; ids must be below.
        place: where the row is, for errors.

    Raises:
        InputError: if it is no list of such integers.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InputError(
            f"{place}: found {type(value).__name__}. Expected a list of token ids: "
            "choose another field with tokens_field."
        )
    for position, token in enumerate(value):
        # bool is an int, and 3.0 or NaN is what a spreadsheet makes of a hole.
        if not isinstance(token, int) or isinstance(token, bool):
            raise InputError(
                f"{place}: entry {position} is {token!r}. Expected an integer: token "
                "ids as a tokenizer gives them."
            )
        check_id(token, vocab_size=vocab_size, place=place)
    return list(value)


def check_id(token: int, *, vocab_size: int, place: str) -> None:
    """Refuse an id that the model's embedding lacks.

    Raises:
        InputError: if ``token`` is negative or not below ``vocab_size``.
    """
    if not 0 <= token < vocab_size:
        raise InputError(
            f"{place}: token id {token} is outside the model's vocabulary of "
            f"{vocab_size}. Expected the ids of this model's own tokenizer: encode the "
            "text again with it."
        )
