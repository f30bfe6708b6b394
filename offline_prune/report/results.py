"""``results.json``: everything a pruning run knows about itself, in one file.

The pipeline writes it, ``evaluate`` adds to it; report, model card, plots and verify
read nothing else. No torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from nmsparse.config import describe_errors
from nmsparse.json_text import parse_json
from offline_prune.errors import InputError
from offline_prune.report.layers import BlockResult, LayerResult, expect_share
from offline_prune.report.measurements import EvaluationResult, Sizes
from offline_prune.report.record import Count, Real, Record, Seconds, Share
from offline_prune.text_file import write_text

RESULTS_NAME = "results.json"
# What differs between two runs that write the same weights: kept apart, so that every
# other file of the folder is the same.
RUN_NAME = "run.json"
_OF_THE_RUN = ("date", "command", "hardware", "time", "peak_memory_bytes")
SCHEMA_VERSION = 1


class ModelResult(Record):
    """The dense model.

    Attributes:
        name: for people: a Hub id, or the name of a folder (never its path).
        hub_id: ``ORG/NAME`` if the model came from the Hub.
        architecture: class of transformers, such as ``LlamaForCausalLM``.
        parameters: number of all its parameters, tied ones once.
        dtype: of the weights, such as ``bfloat16``.
        files: weight files to SHA-256.
    """

    name: str
    hub_id: str | None = None
    architecture: str
    parameters: Count
    dtype: str
    files: dict[str, str] = Field(default_factory=dict)


class CalibrationResult(Record):
    """The text the pruner looked at.

    Attributes:
        source: where it came from.
        sha256: of the token ids.
        windows: number of sequences.
        tokens: of all windows.
        description: whatever else is known of it.
    """

    source: str
    sha256: str
    windows: Count
    tokens: Count
    description: dict[str, Any] = Field(default_factory=dict)


class BudgetResult(Record):
    """What was to be removed, and what was.

    Attributes:
        target: share of the weights in pruned layers.
        achieved: ``removed / total``.
        removed: number of weights removed.
        total: number of weights in pruned layers.
    """

    target: Share
    achieved: Share
    removed: Count
    total: Count

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        expect_share("budget", self.achieved, removed=self.removed, total=self.total)
        return self


class Results(Record):
    """A pruning run.

    Attributes:
        schema_version: of this file.
        date: when the run ended, ISO 8601 with its time zone.
        command: as it was given to a shell, or the call in Python.
        versions: distribution to version.
        hardware: for people, such as ``NVIDIA H200`` or ``CPU, 2 threads``.
        model: the dense model.
        config: the whole configuration of the run; its keys are a recipe's.
        calibration: None if no method needed data.
        budget: of all layers together.
        layers: in the order of the model.
        blocks: in the order of the model.
        allocations: allocator to the share it removes from each block, computed side by
            side; ``allocator`` of ``config`` names the one that was used.
        profiles: name to one number a block (outliers, alpha, amplification).
        evaluation: measurements, in the order they were taken.
        sizes: None if not measured.
        time: stage to seconds; stages do not overlap.
        peak_memory_bytes: of the process, None if not measured.
        files: name in the folder to SHA-256, of everything that is never rewritten.
        notes: sentences a user of the model should read, such as fallbacks.
    """

    schema_version: int = SCHEMA_VERSION
    date: str = "not recorded"
    command: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: str | None = None
    model: ModelResult
    config: dict[str, Any]
    calibration: CalibrationResult | None = None
    budget: BudgetResult
    layers: list[LayerResult] = Field(min_length=1)
    blocks: list[BlockResult] = Field(min_length=1)
    allocations: dict[str, list[Real]] = Field(default_factory=dict)
    profiles: dict[str, list[Real]] = Field(default_factory=dict)
    evaluation: list[EvaluationResult] = Field(default_factory=list)
    sizes: Sizes | None = None
    time: dict[str, Seconds] = Field(default_factory=dict)
    peak_memory_bytes: Count | None = None
    files: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _readable_schema(cls, data: Any) -> Any:
        # First of all: a newer schema may have keys that are unknown here.
        version = data.get("schema_version", 1) if isinstance(data, dict) else 1
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise ValueError(
                f"schema_version {version!r} cannot be read. Expected {SCHEMA_VERSION}:"
                " upgrade vllm-sparse, or prune the model again."
            )
        return data

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        repeated = _repeated([layer.name for layer in self.layers])
        if repeated:
            raise ValueError(f"layers: {repeated} is listed twice. Expected it once.")
        for kind, curves in (
            ("allocations", self.allocations),
            ("profiles", self.profiles),
        ):
            for name, values in curves.items():
                if len(values) != len(self.blocks):
                    raise ValueError(
                        f"{kind}: {name} has {len(values)} values. Expected "
                        f"{len(self.blocks)}, one a block."
                    )
        return self

    def to_json(self) -> str:
        """Return the JSON text of ``results.json``."""
        return self.model_dump_json(indent=2, exclude=set(_OF_THE_RUN)) + "\n"

    def run_json(self) -> str:
        """Return the JSON text of ``run.json``: when, where and how long."""
        return self.model_dump_json(indent=2, include=set(_OF_THE_RUN)) + "\n"


def read_results(folder: Path) -> Results:
    """Read ``results.json`` of a pruned folder, and ``run.json`` if it is there.

    Raises:
        InputError: if it is missing or cannot be used, with one line for each problem.
    """
    path = folder / RESULTS_NAME
    try:
        data = _object(path)
    except FileNotFoundError:
        raise InputError(
            f"Folder {folder} has no {RESULTS_NAME}. Expected a folder that "
            "offline-prune run made: check the path."
        ) from None
    try:
        run = _object(folder / RUN_NAME)
    except FileNotFoundError:
        run = {}
    merged = {**data, **{key: run[key] for key in _OF_THE_RUN if key in run}}
    try:
        # As JSON: strict validation takes a JSON array for a tuple, a list it does not.
        return Results.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        raise InputError(describe_errors(error, str(path))) from None


def write_results(folder: Path, results: Results) -> Path:
    """Write ``results.json`` and ``run.json``, each whole or not at all.

    Returns:
        ``results.json``.
    """
    write_text(folder / RUN_NAME, results.run_json())
    return write_text(folder / RESULTS_NAME, results.to_json())


def _object(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        FileNotFoundError: if the file is not there.
        InputError: if it is no JSON object.
    """
    try:
        data = parse_json(path.read_bytes())
    except ValueError as error:
        raise InputError(
            f"{path} cannot be read ({error}). Expected JSON: copy the folder again, "
            "or prune the model again."
        ) from None
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no JSON object. Expected one.")
    return data


def _repeated(names: list[str]) -> str | None:
    """Return the first name that is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
