"""``offline-prune report``: write report, pictures and model card anew."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag, CliPositionalArg

from offline_prune.commands.console import say


class Report(BaseModel):
    """Write report.md, the model card and the pictures of a pruned folder."""

    folder: CliPositionalArg[Path] = Field(description="Pruned folder.")
    plots: CliImplicitFlag[bool] = Field(
        default=True, description="Draw pictures (needs the extra report)."
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.report.build import build_report

        for path in build_report(self.folder, plots=self.plots):
            say(str(path))
