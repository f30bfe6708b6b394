"""Options of a method as a model: typed, frozen, unknown keys refused with a hint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from typing_extensions import Self

from nmsparse.config import describe_errors
from nmsparse.suggest import unknown
from offline_prune.errors import InputError


class Options(BaseModel):
    """Base of scorers, allocators, compensations and of the calibration's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(unknown("option", str(key), cls.model_fields))
        return data

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, source: str) -> Self:
        """Validate a mapping of options.

        Args:
            data: option to value.
            source: what the options belong to, named in errors.

        Raises:
            InputError: with one line for each problem.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise InputError(describe_errors(error, source)) from None
