"""``offline-prune methods``: what there is, from which paper, and what it needs."""

from __future__ import annotations

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from offline_prune.commands.console import show


class MethodsCommand(BaseModel):
    """List scorers, allocators, compensations; with a name, its options."""

    name: CliPositionalArg[str | None] = Field(
        default=None, description="A method, to see its options."
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.methods import (
            find_method,
            list_methods,
            method_details,
            methods_table,
        )

        if self.name is None:
            show(methods_table(list_methods()))
        else:
            show(method_details(find_method(self.name)))
