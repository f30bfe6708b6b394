"""``calibrate``: a Hugging Face model in, a folder that serves sparse activations out.

The weights stay as they are, byte for byte: the folder gains a sidecar, a file of
parameters and a report. Stock transformers and stock vLLM read it as the dense model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nmsparse.config import SparsityConfig
from nmsparse.sidecar import read_sidecar
from offline_prune import __version__
from offline_prune.annotation import check_output_folder
from offline_prune.calibration.data import CalibrationSet
from offline_prune.online.blockwise import FitResult, fit_blocks
from offline_prune.online.config import CalibrateConfig
from offline_prune.online.folder import write_calibrated
from offline_prune.online.plan import Blocks, Plan, make_plan, rules_of
from offline_prune.online.results import CalibrationRecord
from offline_prune.online.sites import check_levels, find_sites, layer_bytes
from offline_prune.online.summary import make_record, sidecar_of
from offline_prune.pipeline.assemble import check_space
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.device import choose_device
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.source import Source, locate, open_source
from offline_prune.pipeline.stages import Clock, full_disk
from offline_prune.pipeline.store import Store
from offline_prune.pipeline.texts import Texts, calibration_set, needs_tokenizer


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What :func:`calibrate` made.

    Attributes:
        folder: the model with its sidecar.
        config: the sidecar.
        record: what was measured, as in ``calibration.json``.
    """

    folder: Path
    config: SparsityConfig
    record: CalibrationRecord


def calibrate(
    model: str | Path,
    config: CalibrateConfig,
    *,
    output: str | Path,
    texts: Texts | None = None,
    restart: bool = False,
    device: str | None = None,
    command: str | None = None,
) -> Calibrated:
    """Choose densities and fit mitigations, one block resident at a time.

    The source is never touched. A run that was stopped goes on when it is repeated.

    Args:
        model: a local folder, or an id of the Hub.
        config: what to do.
        output: the new folder; it appears whole or not at all.
        texts: calibration texts or rows of token ids, instead of the configured source.
        restart: forget what an earlier run of the same output left.
        device: where blocks are computed; a GPU if there is one.
        command: as it was given, for the report.

    Raises:
        InputError: if the model, the text or the output cannot be used.
        ConfigError: if a pattern or target does not fit the model.
    """
    place = choose_device(device)
    path, target = locate(model), Path(output)
    check_output_folder(path, target)
    clock = Clock()
    with clock.stage("check"):
        source = open_source(path, tokenizer=needs_tokenizer(config.calibration, texts))
        check_space(target, source.folder.weight_bytes)
    with clock.stage("calibration text"):
        text, _ = calibration_set(config.calibration, source, texts)
    skeleton = Skeleton.build(source, device=place)
    blocks = find_sites(skeleton, targets=config.targets, ignore=config.ignore)
    check_levels(blocks, config.levels)
    store = Store.beside(target)
    with store.locked(), full_disk(target):
        if restart:
            store.remove()
        store.open(_fingerprint(config, source, text))
        capture = Capture(skeleton)
        plan = _plan(config, source, skeleton, capture, text, blocks, store, clock)
        rules = rules_of(config, plan, blocks)
        fitted = FitResult({}, ())
        if any(needs_fit(name) for name in config.mitigation):
            total = len(text.windows) * len(blocks)
            with clock.stage("fit"), _bar("Fitting", total) as bar:
                fitted = fit_blocks(
                    skeleton,
                    capture,
                    text.windows,
                    rules,
                    options=config.fit,
                    store=store,
                    tick=bar.update,
                    dense_first_token=config.dense_first_token,
                )
        sidecar = sidecar_of(
            config,
            plan,
            blocks,
            text=text,
            skeleton=skeleton,
            before=read_sidecar(path),
        )
        record = make_record(
            config,
            plan,
            blocks,
            sizes=_sizes(config, blocks),
            text=text,
            fitted=fitted,
            seconds=clock.seconds,
            command=command,
            device=place,
        )
        # Minutes later: what was put there meanwhile is not ours to replace.
        check_output_folder(path, target)
        written = write_calibrated(
            path,
            target,
            sidecar=sidecar,
            plan=plan,
            rules=rules,
            blocks=blocks,
            fitted=fitted,
            record=record,
            skeleton=skeleton,
        )
        store.remove()
    return Calibrated(target, written, record)


def needs_fit(mitigation: str) -> bool:
    """Whether a mitigation has learned tensors."""
    from nmsparse.mitigation import mitigations

    return bool(mitigations.get(mitigation).parameters)


def _plan(
    config: CalibrateConfig,
    source: Source,
    skeleton: Skeleton,
    capture: Capture,
    text: CalibrationSet,
    blocks: Blocks,
    store: Store,
    clock: Clock,
) -> Plan:
    """Return the plan, from the store if it was made before."""
    found = store.load(_PLAN)
    if found is not None:
        tensors, record = found
        static: dict[str, dict[str, torch.Tensor]] = {n: {} for n in record["levels"]}
        for key, tensor in tensors.items():
            layer, _, name = key.rpartition(".")
            static[layer][name] = tensor
        return Plan(static, record["levels"], record["costs"])
    with clock.stage("plan"), _bar("Measuring", None) as bar:
        plan = make_plan(
            config,
            source,
            skeleton,
            capture,
            text.windows,
            blocks=blocks,
            sizes=_sizes(config, blocks),
            tick=bar.update,
        )
    tensors = {
        f"{layer}.{name}": tensor
        for layer, found in plan.static.items()
        for name, tensor in found.items()
    }
    store.save(_PLAN, tensors, {"levels": plan.levels, "costs": plan.costs})
    return plan


# Number of the plan among the blocks of the store.
_PLAN = 99_999


def _sizes(config: CalibrateConfig, blocks: Blocks) -> dict[str, Any]:
    from nmsparse.criteria import criteria

    factor = criteria.get(config.criterion).needs in ("weight", "calibration")
    return {
        layer.name: layer_bytes(
            layer,
            item=next(iter(layer.parts.values()))
            .get_parameter("weight")
            .element_size(),
            mitigation=config.mitigation,
            factor=factor,
            balanced=config.balanced,
            rank=config.fit.rank,
        )
        for block in blocks
        for layer in block
    }


def _fingerprint(
    config: CalibrateConfig, source: Source, text: CalibrationSet
) -> dict[str, Any]:
    """Return what the output depends on."""
    return {
        "calibration": __version__,
        "torch": torch.__version__,
        "config": config.as_dict(),
        "weights": source.hashes,
        "model": hashlib.sha256(source.folder.config_text.encode()).hexdigest(),
        "text": text.sha256,
    }


def _bar(label: str, total: int | None) -> Any:
    # disable=None: no bar where nobody watches (not a terminal).
    return tqdm(total=total, desc=label, unit="window", disable=None)
