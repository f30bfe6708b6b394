"""Conversations through the tokenizer's chat template.

Calibrating on a model's own conversations keeps a pruned reasoning model from rambling
(sgl-project/sglang#32414), which prompts alone do not.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from offline_prune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(
    messages: Any, tokenizer: PreTrainedTokenizerBase | None, *, place: str
) -> str:
    """Return a conversation as the model sees it, special tokens included.

    Args:
        messages: a list of ``{"role": ..., "content": ...}``.
        tokenizer: has the chat template; not changed.
        place: where the conversation is, for errors.

    Raises:
        InputError: if there is no template, or it refuses the messages.
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{place}: a conversation, but the tokenizer has no chat template. "
            "Expected a model tuned for chat, or rows with a text: choose text_field."
        )
    if not _is_conversation(messages):
        raise InputError(
            f"{place}: found {_shorten(messages)}. Expected a list of messages, each "
            'with "role" and "content": mend the row, or choose another field.'
        )
    from jinja2 import TemplateError

    try:
        # A copy: templates are given the list itself.
        text = tokenizer.apply_chat_template(copy.deepcopy(messages), tokenize=False)
    except TemplateError as error:
        raise InputError(
            f"{place}: the chat template refuses the conversation: {error}. Expected "
            "roles in the order the model knows: mend or remove the row."
        ) from error
    return str(text)


def _is_conversation(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(message, dict) and {"role", "content"} <= message.keys()
            for message in messages
        )
    )


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
