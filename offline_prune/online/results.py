"""``calibration.json``: what a calibration chose, and what it costs. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from offline_prune.report.record import Count, Real, Record, Seconds, Share
from offline_prune.text_file import write_text

CALIBRATION_NAME = "calibration.json"
SCHEMA_VERSION = 1


class LayerCalibration(Record):
    """One fused layer.

    Attributes:
        name: vLLM's name.
        block: number of its block.
        in_features: K.
        out_features: O of all parts.
        pattern: what stays of its input; None if it stays dense.
        dense_bytes: of its weight.
        read_bytes: read for one token, learned tensors included.
        costs: cost of every level of density, from the least; empty if not measured.
    """

    name: str
    block: Count
    in_features: Count
    out_features: Count
    pattern: str | None
    dense_bytes: Count
    read_bytes: Count
    costs: list[Real] = Field(default_factory=list)


class CalibrationRecord(Record):
    """The whole calibration.

    Attributes:
        schema_version: of this file.
        command: as it was given, None if called from Python.
        config: the settings.
        source: name of the calibration text.
        sha256: hash of its token ids.
        windows: number of its windows.
        tokens: of all windows.
        layers: in the order of the model.
        dense_bytes: weight bytes of these layers.
        read_bytes: bytes read for one token.
        read_share: the second divided by the first.
        block_errors: relative error of the blocks' outputs before and after fitting;
            empty without a fit.
        seconds: by stage.
        peak_memory_bytes: of the process.
        hardware: what it ran on.
    """

    schema_version: int = SCHEMA_VERSION
    command: str | None
    config: dict[str, Any]
    source: str
    sha256: str
    windows: Count
    tokens: Count
    layers: list[LayerCalibration]
    dense_bytes: Count
    read_bytes: Count
    read_share: Share
    block_errors: list[tuple[Real, Real]] = Field(default_factory=list)
    seconds: dict[str, Seconds]
    peak_memory_bytes: Count
    hardware: str


def write_calibration(folder: Path, record: CalibrationRecord) -> None:
    """Write the record into a folder."""
    write_text(folder / CALIBRATION_NAME, record.model_dump_json(indent=1) + "\n")


def read_calibration(folder: Path) -> CalibrationRecord:
    """Return the record of a folder.

    Raises:
        OSError: if it has none.
        pydantic.ValidationError: if it is damaged.
    """
    text = (folder / CALIBRATION_NAME).read_text(encoding="utf-8")
    return CalibrationRecord.model_validate_json(text, strict=False)
