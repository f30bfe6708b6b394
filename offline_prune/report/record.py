"""Base of the parts of ``results.json``: strict, frozen, unknown keys refused."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nmsparse.suggest import unknown

_SPECIAL = {"NaN", "Infinity", "-Infinity"}


def _real(value: Any) -> Any:
    """Return the float behind a name: JSON itself has no infinity and no NaN."""
    return float(value) if isinstance(value, str) and value in _SPECIAL else value


# A measured number. A collapsed model has an infinite perplexity, and says so.
Real: TypeAlias = Annotated[float, BeforeValidator(_real)]
Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Seconds: TypeAlias = Annotated[float, Field(ge=0.0)]


class Record(BaseModel):
    """Frozen and strict; numbers that are no numbers are written as strings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, ser_json_inf_nan="strings"
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(unknown("key", str(key), cls.model_fields))
        return data
