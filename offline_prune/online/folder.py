"""The output of a calibration: the model's folder with three files more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from nmsparse.config import SparsityConfig
from nmsparse.ops.online import Online
from nmsparse.parameters import write_parameters
from nmsparse.sidecar import write_sidecar
from offline_prune.annotation import copy_model
from offline_prune.online.blockwise import FitResult
from offline_prune.online.plan import Blocks, Plan
from offline_prune.online.report import write_report
from offline_prune.online.results import CalibrationRecord, write_calibration
from offline_prune.online.sites import file_name
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.staging import staged_folder


def write_calibrated(
    source: Path,
    target: Path,
    *,
    sidecar: SparsityConfig,
    plan: Plan,
    rules: Mapping[str, Online],
    blocks: Blocks,
    fitted: FitResult,
    record: CalibrationRecord,
    skeleton: Skeleton,
) -> SparsityConfig:
    """Write the folder, whole or not at all.

    Args:
        source: the model; every file of it is copied as it is.
        target: the new folder.
        sidecar: the configuration, without its parameters file.
        plan: the static tensors.
        rules: layers that are sparse.
        blocks: fused layers of every block.
        fitted: the learned tensors.
        record: for the report.
        skeleton: the model, for the names in its files.

    Returns:
        The sidecar as it was written.
    """
    parameters = {
        file_name(skeleton, part): tensors
        for part, tensors in _parameters(plan, rules, blocks, fitted).items()
    }
    with staged_folder(target) as staging:
        copy_model(source, staging, label=f"Copying to {target}")
        if parameters:
            file = write_parameters(staging, parameters)
            sidecar = sidecar.model_copy(update={"parameters": file})
        write_sidecar(staging, sidecar)
        write_calibration(staging, record)
        write_report(staging, record)
    return sidecar


def _parameters(
    plan: Plan, rules: Mapping[str, Online], blocks: Blocks, fitted: FitResult
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of every part of every sparse layer."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for block in blocks:
        for layer in block:
            if layer.name not in rules:
                continue
            for part in layer.parts:
                tensors = {
                    **plan.static.get(layer.name, {}),
                    **fitted.parameters.get(part, {}),
                }
                if tensors:
                    found[part] = tensors
    return found
