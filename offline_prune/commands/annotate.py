"""``offline-prune annotate``: a folder describes its activation sparsity."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field
from pydantic_settings import CliPositionalArg

from offline_prune.commands.console import say


class Annotate(BaseModel):
    """Make a model folder describe its activation sparsity (adds one small file)."""

    model_dir: CliPositionalArg[Path] = Field(
        description="Hugging Face model folder (config.json, safetensors, tokenizer)."
    )
    pattern: str = Field(
        description="N kept of every M inputs, such as 8:16; or a share of zeros: 50%."
    )
    phase: Literal["decode", "prefill", "both"] = Field(
        default="decode",
        description="Which tokens are sparse: generated ones, the prompt's, or both.",
    )
    output: Path | None = Field(
        default=None,
        description="New folder for an annotated copy; without it, annotate in place.",
        validation_alias=AliasChoices("output", "o"),
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.annotation import annotate

        folder = annotate(
            self.model_dir, pattern=self.pattern, phase=self.phase, output=self.output
        )
        say(
            f"{folder} now asks for {self.pattern} activation sparsity "
            f"(phase: {self.phase}). Serve it: vllm-sparse serve {folder}"
        )
