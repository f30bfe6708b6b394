"""``offline-prune calibrate``: its flags are the fields of ``CalibrateConfig``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AliasChoices, BaseModel, Field
from pydantic_settings import CliImplicitFlag, CliPositionalArg

from offline_prune.commands.console import say

if TYPE_CHECKING:
    from offline_prune.online.config import CalibrateConfig


class Calibrate(BaseModel):
    """Make a folder that serves sparse activations; the weights stay as they are."""

    model: CliPositionalArg[str] = Field(
        description="Local Hugging Face folder, or an id of the Hub."
    )
    output: Path = Field(
        description="New folder; a run that was stopped goes on.",
        validation_alias=AliasChoices("output", "o"),
    )
    recipe: str | None = Field(
        default=None,
        description="YAML recipe: a file, or the name of a shipped one; flags replace "
        "its fields.",
    )
    pattern: str | None = Field(
        default=None, description="One pattern for every layer, such as 8:16 or 50%."
    )
    budget: float | None = Field(
        default=None,
        description="Share of the layers' weight bytes that a token may read, such as "
        "0.5; every layer gets its own density.",
    )
    group: str | None = Field(
        default=None,
        description="With a budget: 16 or 4 (N:M patterns), or row; row by default.",
    )
    allocator: str | None = Field(
        default=None,
        description="With a budget: final, block, owl, alpha_pruning, dlp, uniform.",
    )
    correction: Literal["absorption"] | None = Field(
        default=None, description="Correction on top of owl, alpha_pruning or dlp."
    )
    criterion: str | None = Field(
        default=None, description="How channels are ranked; magnitude by default."
    )
    mitigation: list[str] | None = Field(
        default=None, description="What reduces the error, such as var,r_sparse."
    )
    balanced: CliImplicitFlag[bool] = Field(
        default=False, description="With N:M: groups of balanced energy."
    )
    lower: int | None = Field(default=None, description="Least level of a layer.")
    amplification: float | None = Field(
        default=None, description="With final: growth of early errors, as a log; 0.5."
    )
    phase: Literal["decode", "prefill", "both"] | None = Field(
        default=None, description="Tokens that the folder asks to be sparse; decode."
    )
    dense_first_token: CliImplicitFlag[bool] = Field(
        default=False, description="Keep the first token of a request dense."
    )
    targets: list[str] | None = Field(
        default=None, description="What is sparse; all linears of blocks by default."
    )
    ignore: list[str] | None = Field(default=None, description="What stays dense.")
    gradient_windows: int | None = Field(
        default=None, description="Windows that sensitivities are measured on; 8."
    )
    fit: dict[str, Any] | None = Field(
        default=None, description="Fields of the fit, such as rank=16 or steps=100."
    )
    calibration: str | None = Field(
        default=None,
        description="Text: .txt, .jsonl or .parquet, an id of the Hub, or synthetic.",
    )
    num_samples: int | None = Field(default=None, description="Windows of text; 128.")
    seq_len: int | None = Field(default=None, description="Tokens a window; 2048.")
    calibration_options: dict[str, Any] | None = Field(
        default=None, description="Other fields of the calibration, such as split=test."
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
        from offline_prune.calibration.config import SYNTHETIC
        from offline_prune.online.calibrate import calibrate

        done = calibrate(
            self.model,
            self._config(),
            output=self.output,
            restart=self.restart,
            device=self.device,
            command=shlex.join(["offline-prune", *sys.argv[1:]]),
        )
        record = done.record
        if record.source == SYNTHETIC:
            say(
                "Calibrated on random tokens, which is for trials only: give your own "
                "text with --calibration."
            )
        say(
            f"A sparse token reads {record.read_bytes:,} of {record.dense_bytes:,} "
            f"bytes of {len(record.layers)} layers ({record.read_share:.2%}) in "
            f"{done.folder}. Look at it: {done.folder / 'calibration.md'}. Serve it: "
            f"vllm-sparse serve {done.folder}"
        )

    def _config(self) -> CalibrateConfig:
        """Return the configuration: the recipe's fields, replaced by the flags."""
        from offline_prune.online.config import CalibrateConfig, make_calibrate_config

        # Flags left alone replace nothing of a recipe; --no-balanced does.
        changes = {
            name: getattr(self, name)
            for name in CalibrateConfig.model_fields
            if name not in ("calibration", "fit") and name in self.model_fields_set
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
        return make_calibrate_config(
            self.recipe, changes, calibration=text, fit=self.fit
        )
