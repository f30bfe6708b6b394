"""A row of a data set, whatever it holds, as token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nmsparse.suggest import unknown
from offline_prune.calibration.chat import render
from offline_prune.calibration.config import CalibrationConfig
from offline_prune.calibration.encoding import Encoder
from offline_prune.calibration.token_ids import check_ids
from offline_prune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tried in this order, unless a field was chosen.
_FIELDS = ("tokens_field", "messages_field", "text_field")


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids from which windows are cut.

    Attributes:
        ids: the content, without ``<bos>``.
        lead: what every window of this document begins with: ``[bos]`` or nothing.
        kind: ``text``, ``chat`` or ``tokens``.
    """

    ids: list[int]
    lead: list[int]
    kind: str


@dataclass(frozen=True, slots=True)
class Documents:
    """Makes documents of rows.

    Attributes:
        config: names of the fields.
        tokenizer: for chat templates; never changed.
        encoder: encodes texts.
        vocab_size: token ids must be below.
    """

    config: CalibrationConfig
    tokenizer: PreTrainedTokenizerBase | None
    encoder: Encoder
    vocab_size: int

    def of_row(self, row: Mapping[str, Any], *, place: str) -> Document:
        """Return the document in a row.

        Args:
            row: field to value.
            place: where the row is, for errors.

        Raises:
            InputError: if no field is known, or its value cannot be used.
        """
        setting, field = self._field(row, place)
        value = row[field]
        if setting == "tokens_field":
            return self.of_ids(value, place=f"{place}, field {field!r}")
        if setting == "messages_field":
            text = render(value, self.tokenizer, place=f"{place}, field {field!r}")
            return self._of_chat(text)
        if not isinstance(value, str):
            raise InputError(
                f"{place}: field {field!r} is {value!r}. Expected a text: choose "
                "another field with text_field, or remove the row."
            )
        return self.of_text(value)

    def of_text(self, text: str) -> Document:
        """Return a text as a document."""
        return Document(self.encoder.encode(text), self.encoder.text_lead(), "text")

    def of_ids(self, value: Any, *, place: str) -> Document:
        """Return token ids as a document."""
        ids = check_ids(value, vocab_size=self.vocab_size, place=place)
        content, had_bos = self.encoder.without_bos(ids)
        return Document(content, self.encoder.ids_lead(had_bos=had_bos), "tokens")

    def _of_chat(self, text: str) -> Document:
        # Most templates write <bos> themselves.
        content, had_bos = self.encoder.without_bos(self.encoder.encode(text))
        lead = self.encoder.ids_lead(had_bos=had_bos) or self.encoder.text_lead()
        return Document(content, lead, "chat")

    def _field(self, row: Mapping[str, Any], place: str) -> tuple[str, str]:
        """Return the setting and the name of the field that is read."""
        # By value, not by model_fields_set: a recipe that was saved sets them all.
        defaults = CalibrationConfig.model_fields
        chosen = [
            name
            for name in _FIELDS
            if getattr(self.config, name) != defaults[name].default
        ]
        settings = chosen or _FIELDS
        for setting in settings:
            field = getattr(self.config, setting)
            if field in row:
                return setting, field
        setting = settings[-1]
        problem = unknown("field", getattr(self.config, setting), row)
        raise InputError(f"{place}: {problem} Choose one with {setting}.")
