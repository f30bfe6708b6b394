"""``results.json`` of a finished job."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from offline_prune.calibration.data import CalibrationSet
from offline_prune.pipeline.block import Outcome
from offline_prune.pipeline.job import Job
from offline_prune.pipeline.output import packed_bytes
from offline_prune.pipeline.stages import hardware, peak_memory
from offline_prune.report.layers import BlockResult, LayerResult
from offline_prune.report.measurements import Sizes
from offline_prune.report.results import (
    BudgetResult,
    CalibrationResult,
    ModelResult,
    Results,
)

_VERSIONS = ("vllm-sparse", "torch", "transformers", "safetensors", "accelerate")
_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def make_results(
    job: Job,
    outcomes: Sequence[Outcome],
    *,
    name: str,
    hub_id: str | None,
    calibration: CalibrationSet | None,
    seconds: Mapping[str, float],
    command: str | None,
    saved_bytes: int,
    files: Mapping[str, str],
) -> Results:
    """Describe a finished job.

    Args:
        job: the job.
        outcomes: of every layer.
        name: the model's name for people.
        hub_id: its id on the Hub, None if it is a local folder.
        calibration: the text it read, None if no method needed any.
        seconds: stage to seconds.
        command: as it was given, None if called from Python.
        saved_bytes: size of the new weight files.
        files: name to SHA-256 of the new weight files.
    """
    layers = _layers(job, outcomes)
    removed = sum(layer.removed for layer in layers)
    total = sum(layer.size for layer in layers)
    config = job.config.model_dump(mode="json")
    dense = job.source.folder.weight_bytes
    allocation = job.allocation
    assert allocation is not None
    return Results(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        versions=_versions(),
        hardware=hardware(job.skeleton.device),
        model=_model(job, name, hub_id),
        config=config,
        calibration=None if calibration is None else _calibration(calibration),
        budget=BudgetResult(
            target=job.config.target,
            achieved=removed / total,
            removed=removed,
            total=total,
        ),
        layers=layers,
        blocks=_blocks(job, layers),
        allocations=dict(allocation.curves),
        profiles=dict(allocation.profiles),
        sizes=Sizes(
            dense_bytes=dense,
            saved_bytes=saved_bytes,
            saved_format="packed" if job.config.format == "bitmask" else "dense",
            packed_bytes=packed_bytes(job, outcomes, dense),
        ),
        time=dict(seconds),
        peak_memory_bytes=peak_memory(),
        files=dict(files),
        notes=[*job.notes, *_notes(outcomes)],
    )


def _layers(job: Job, outcomes: Sequence[Outcome]) -> list[LayerResult]:
    where = {
        layer.name: (index, layer)
        for index, block in enumerate(job.blocks)
        for layer in block
    }
    found = []
    for outcome in outcomes:
        index, layer = where[outcome.name]
        pattern = job.targets[outcome.name].pattern
        allocation = job.allocation
        assert allocation is not None
        found.append(
            LayerResult(
                name=layer.name,
                block=index,
                out_features=layer.out_features,
                in_features=layer.in_features,
                pattern=str(pattern) if pattern else None,
                target=pattern.sparsity if pattern else allocation.shares[index],
                removed=outcome.removed,
                sparsity=outcome.removed / layer.size,
                zeros=outcome.zeros,
                fallback=outcome.fallback,
                relative_error=outcome.relative_error,
                tensor=layer.tensor,
                transposed=layer.transposed,
            )
        )
    return found


def _blocks(job: Job, layers: Sequence[LayerResult]) -> list[BlockResult]:
    found = []
    assert job.allocation is not None
    for index in range(len(job.blocks)):
        mine = [layer for layer in layers if layer.block == index]
        size = sum(layer.size for layer in mine)
        measures = {
            name: values[index] for name, values in job.allocation.profiles.items()
        }
        share = sum(layer.removed for layer in mine) / size if size else 0.0
        found.append(BlockResult(index=index, sparsity=share, measures=measures))
    return found


def _model(job: Job, name: str, hub_id: str | None) -> ModelResult:
    elements = 0
    kinds: dict[str, int] = {}
    for kind, shape in job.source.headers.values():
        count = 1
        for size in shape:
            count *= size
        elements += count
        kinds[kind] = kinds.get(kind, 0) + count
    most = max(kinds, key=lambda kind: kinds[kind])
    return ModelResult(
        name=name,
        hub_id=hub_id,
        architecture=job.source.architecture,
        parameters=elements,
        dtype=_TYPES.get(most, most.lower()),
        files=dict(job.source.hashes),
    )


def _calibration(calibration: CalibrationSet) -> CalibrationResult:
    return CalibrationResult(
        # A file by its name: a model card is no place for somebody's folders.
        source=Path(calibration.source).name
        if Path(calibration.source).is_file()
        else calibration.source,
        sha256=calibration.sha256,
        windows=len(calibration.windows),
        tokens=sum(len(window) for window in calibration.windows),
        description=dict(calibration.description),
    )


def _notes(outcomes: Sequence[Outcome]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.fallback:
            reasons.setdefault(outcome.fallback, []).append(outcome.name)
    return [
        f"{len(names)} layers, the first {names[0]}: {reason}."
        for reason, names in reasons.items()
    ]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
