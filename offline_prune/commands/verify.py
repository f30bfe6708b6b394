"""``offline-prune verify``: does a pruned folder hold what its record says?"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from offline_prune.commands.console import say
from offline_prune.errors import InputError


class Verify(BaseModel):
    """Check patterns, budget and hashes of a pruned folder, tensor by tensor."""

    folder: CliPositionalArg[Path] = Field(description="Pruned folder.")

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.verification.verify import verify

        found = verify(self.folder)
        if not found.ok:
            raise InputError("\n".join(found.problems))
        say(
            f"{self.folder} is what its record says: {len(found.layers)} layers, "
            f"{found.zeros:,} zeros, every pattern, count and hash as recorded."
        )
        for note in found.notes:
            say(note)
