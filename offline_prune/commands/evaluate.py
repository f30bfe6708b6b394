"""``offline-prune eval``: perplexity, agreement with the dense model, tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag, CliPositionalArg

from nmsparse.config import Phase
from offline_prune.commands.console import say


class Evaluate(BaseModel):
    """Measure a pruned folder, and record it there; with --dense both models.

    Online sparsity of the folder's sidecar is emulated.
    """

    folder: CliPositionalArg[Path] = Field(
        description="Pruned folder, dense or packed; any model folder is measured too."
    )
    text: Path | None = Field(
        default=None,
        description="Text for perplexity: .txt, .raw, .jsonl, .json or .parquet. Never "
        "the calibration text.",
    )
    text_name: str | None = Field(
        default=None, description="What the report calls the text; the file's name."
    )
    seq_len: int = Field(default=2048, ge=2, description="Tokens in a window.")
    windows: int | None = Field(
        default=None, ge=1, description="At most so many windows; all by default."
    )
    dense: Path | None = Field(
        default=None,
        description="The dense model: measured beside, with KL and token agreement.",
    )
    tasks: list[str] | None = Field(
        default=None, description="Zero-shot tasks of lm-eval (extra eval)."
    )
    task_data: Path | None = Field(
        default=None, description="Folder with TASK/*.jsonl, to need no network."
    )
    limit: int | None = Field(
        default=None, ge=1, description="At most so many examples a task."
    )
    prompts: Path | None = Field(
        default=None,
        description="Text file, one prompt a line: mean length of greedy answers.",
    )
    max_new_tokens: int = Field(default=256, ge=1, description="Of an answer.")
    online: CliImplicitFlag[bool] = Field(
        default=True,
        description="Emulate the activation sparsity of the folder's sidecar.",
    )
    phase: Phase | None = Field(
        default=None,
        description="With online sparsity, the tokens that are sparsified; both if not "
        "given. On the text, a window's second half is decode.",
    )
    phases: CliImplicitFlag[bool] = Field(
        default=False,
        description="Measure all policies on the text: decode, prefill, both, and both "
        "with a dense first token.",
    )
    continuation_tokens: int = Field(
        default=32,
        ge=0,
        description="With online sparsity, tokens that the dense model generates from "
        "every window's first half, to compare predictions there; 0 for none.",
    )
    device: str = Field(default="cpu", description="Where the models run.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="What the models run in; auto is the folder's own."
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.evaluation.evaluate import Measurements, evaluate

        found = evaluate(
            self.folder,
            dense=self.dense,
            measurements=Measurements(
                text=self.text,
                text_name=self.text_name,
                seq_len=self.seq_len,
                windows=self.windows,
                tasks=tuple(self.tasks or ()),
                task_data=self.task_data,
                limit=self.limit,
                prompts=self.prompts,
                max_new_tokens=self.max_new_tokens,
                online=self.online,
                phase=self.phase,
                phases=self.phases,
                continuation_tokens=self.continuation_tokens,
            ),
            device=self.device,
            dtype=self.dtype,
        )
        for line in found.lines():
            say(line)
        if found.recorded:
            say(f"Recorded in {self.folder / 'results.json'}.")
