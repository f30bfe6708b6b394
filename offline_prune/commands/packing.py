"""``offline-prune pack`` and ``unpack``: the packed format and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AliasChoices, BaseModel, Field
from pydantic_settings import CliPositionalArg

from offline_prune.commands.console import say

if TYPE_CHECKING:
    from offline_prune.packing.convert import Conversion


class Pack(BaseModel):
    """Store the weights of a pruned model as bits and non-zero values (a copy)."""

    source: CliPositionalArg[Path] = Field(
        description="Pruned Hugging Face model folder: zeros in its weights."
    )
    output: Path = Field(
        description="New folder for the packed copy.",
        validation_alias=AliasChoices("output", "o"),
    )
    min_sparsity: float = Field(
        default=0.4,
        ge=0.0,
        lt=1.0,
        description="Share of zeros from which a linear weight is packed.",
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.packing.convert import pack

        done = pack(self.source, output=self.output, min_sparsity=self.min_sparsity)
        say(
            f"{done.modules} of {done.linears} linear weights are packed: "
            f"{_sizes(done)}. Serve it: vllm-sparse serve {done.folder}"
        )


class Unpack(BaseModel):
    """Make a packed model dense again (a copy): the inverse of pack."""

    source: CliPositionalArg[Path] = Field(description="Packed model folder.")
    output: Path = Field(
        description="New folder for the dense copy.",
        validation_alias=AliasChoices("output", "o"),
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.packing.convert import unpack

        done = unpack(self.source, output=self.output)
        say(f"{done.modules} weights in {done.folder} are dense: {_sizes(done)}.")


def _sizes(done: Conversion) -> str:
    """Return the sizes of the weight files for people to read."""
    after, before = (
        f"{size / 1e6:,.1f} MB" for size in (done.bytes_after, done.bytes_before)
    )
    return f"{after}, was {before} ({done.bytes_after / done.bytes_before:.0%})"
