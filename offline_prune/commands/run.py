"""``offline-prune run``: prune a model. Its flags are the fields of ``PruneConfig``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AliasChoices, BaseModel, Field
from pydantic_settings import CliImplicitFlag, CliPositionalArg

from offline_prune.commands.console import say

if TYPE_CHECKING:
    from offline_prune.config import PruneConfig


class Run(BaseModel):
    """Prune a model: a Hugging Face folder or id in, a pruned folder out."""

    model: CliPositionalArg[str] = Field(
        description="Local Hugging Face folder, or an id of the Hub."
    )
    output: Path = Field(
        description="New folder for the pruned model; a run that was stopped goes on.",
        validation_alias=AliasChoices("output", "o"),
    )
    recipe: str | None = Field(
        default=None,
        description="YAML recipe: a file, or the name of a shipped one; flags replace "
        "its fields.",
    )
    scorer: str | None = Field(
        default=None, description="How weights are ranked; wanda by default."
    )
    scorer_options: dict[str, Any] | None = Field(
        default=None, description='Such as alpha=0.5, or JSON: {"alpha": 0.5}.'
    )
    sparsity: float | None = Field(
        default=None, description="Share of weights to remove, such as 0.5."
    )
    pattern: str | None = Field(
        default=None, description="N kept of every M weights instead, such as 2:4."
    )
    mixed: CliImplicitFlag[bool] = Field(
        default=False, description="With a pattern: every block gets its own N of M."
    )
    allocator: str | None = Field(
        default=None, description="How the budget is split over blocks; uniform."
    )
    allocator_options: dict[str, Any] | None = Field(default=None)
    correction: Literal["absorption"] | None = Field(
        default=None, description="Correction on top of the allocator."
    )
    correction_options: dict[str, Any] | None = Field(default=None)
    channels: str | None = Field(
        default=None, description="How a layer's budget is split over its rows: ogas."
    )
    channel_options: dict[str, Any] | None = Field(default=None)
    permutation: CliImplicitFlag[bool] = Field(
        default=False, description="With a pattern: reorder channels where possible."
    )
    compensation: list[str] | None = Field(
        default=None, description="Corrections of the kept weights, in this order."
    )
    compensation_options: dict[str, Any] | None = Field(default=None)
    bias: Literal["all", "available"] | None = Field(
        default=None,
        description="Biases for mean_shift: refuse models without room for all, or "
        "use what there is.",
    )
    targets: list[str] | None = Field(
        default=None, description="What to prune; all linears of blocks by default."
    )
    ignore: list[str] | None = Field(default=None, description="What to leave dense.")
    lower: float | None = Field(default=None, description="Least block sparsity.")
    upper: float | None = Field(default=None, description="Greatest block sparsity.")
    calibration: str | None = Field(
        default=None,
        description="Text: .txt, .jsonl or .parquet, an id of the Hub, or synthetic.",
    )
    num_samples: int | None = Field(default=None, description="Windows of text; 128.")
    seq_len: int | None = Field(default=None, description="Tokens a window; 2048.")
    calibration_options: dict[str, Any] | None = Field(
        default=None, description="Other fields of the calibration, such as split=test."
    )
    profile: CliImplicitFlag[bool] = Field(
        default=False, description="Measure every allocator, for the report."
    )
    format: Literal["dense", "bitmask"] | None = Field(
        default=None, description="dense (weights with zeros) or bitmask (packed)."
    )
    seed: int | None = Field(default=None, description="Of everything random; 0.")
    device: str | None = Field(
        default=None, description="Where blocks are computed; a GPU if there is one."
    )
    restart: CliImplicitFlag[bool] = Field(
        default=False, description="Forget what a stopped run of this output left."
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.errors import MissingDependencyError
        from offline_prune.pipeline.run import run_prune
        from offline_prune.report.build import build_report

        done = run_prune(
            self.model,
            self._config(),
            output=self.output,
            restart=self.restart,
            device=self.device,
            command=shlex.join(["offline-prune", *sys.argv[1:]]),
        )
        if not done.first:
            return
        try:
            build_report(done.folder)
        except MissingDependencyError as error:
            say(f"Report and model card have no pictures: {error}")
        budget = done.results.budget
        say(
            f"{budget.removed:,} of {budget.total:,} weights are zero "
            f"({budget.achieved:.2%}) in {done.folder}. Look at it: "
            f"{done.folder / 'report.md'}. Serve it: vllm-sparse serve {done.folder}"
        )

    def _config(self) -> PruneConfig:
        """Return the configuration: the recipe's fields, replaced by the flags."""
        from offline_prune.config import PruneConfig, make_config

        # Flags left alone replace nothing of a recipe; 0 and --no-mixed do.
        changes = {
            name: getattr(self, name)
            for name in PruneConfig.model_fields
            if name != "calibration" and name in self.model_fields_set
        }
        text = dict(self.calibration_options or {})
        for name, value in (
            ("source", self.calibration),
            ("num_samples", self.num_samples),
            ("seq_len", self.seq_len),
            ("seed", self.seed),
        ):
            if value is not None:
                text[name] = value
        return make_config(self.recipe, changes, calibration=text)
