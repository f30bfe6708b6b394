"""``prune``: a Hugging Face model in, a pruned Hugging Face folder out."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offline_prune import __version__
from offline_prune.calibration.data import CalibrationSet
from offline_prune.checksum import sha256_of
from offline_prune.config import PruneConfig
from offline_prune.errors import InputError
from offline_prune.packing.convert import MIN_SPARSITY, pack
from offline_prune.packing.refuse import check_architecture, check_output
from offline_prune.pipeline.assemble import check_space
from offline_prune.pipeline.device import choose_device
from offline_prune.pipeline.job import HELD_OUT_WINDOWS, Job
from offline_prune.pipeline.methods import Methods
from offline_prune.pipeline.output import write_folder, write_record
from offline_prune.pipeline.ranks import Ranks
from offline_prune.pipeline.results import make_results
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.source import Source, locate, open_source
from offline_prune.pipeline.stages import Clock, full_disk
from offline_prune.pipeline.store import Store
from offline_prune.pipeline.targets import removed_by
from offline_prune.pipeline.texts import Texts, calibration_set, needs_tokenizer
from offline_prune.report.results import Results, read_results, write_results
from offline_prune.staging import staged_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What :func:`prune` made.

    Attributes:
        folder: the pruned model.
        results: everything that is known about the run, as in ``results.json``.
        first: whether this process wrote the folder (the first of several).
    """

    folder: Path
    results: Results
    first: bool = True

    @property
    def sparsity(self) -> float:
        """Share of the weights of the pruned layers that was removed."""
        return self.results.budget.achieved


def run_prune(
    model: str | Path,
    config: PruneConfig,
    *,
    output: str | Path,
    texts: Texts | None = None,
    restart: bool = False,
    device: str | None = None,
    command: str | None = None,
) -> PruneReport:
    """Prune a model, block by block.

    The source is never touched. A run that was stopped goes on when it is repeated, and
    writes the same weights as one that was not.

    Args:
        model: a local folder, or an id of the Hub.
        config: what to do.
        output: the new folder; it appears whole or not at all.
        texts: calibration texts or rows of token ids, instead of the configured source.
        restart: forget what an earlier run of the same output left.
        device: where blocks are computed; a GPU if there is one.
        command: as it was given, for the report.

    Raises:
        InputError: if the model, the configuration or the output cannot be used.
    """
    place = choose_device(device)
    ranks = Ranks.join()
    clock = Clock()
    path, target = locate(model), Path(output)
    check_output(path, target)
    methods = Methods.of(config)
    data = bool(methods.needs) or methods.needs_data or config.profile
    with clock.stage("check"):
        source = open_source(
            path, tokenizer=data and needs_tokenizer(config.calibration, texts)
        )
        if config.format == "bitmask":
            check_architecture(source.folder)
        check_space(target, 2 * source.folder.weight_bytes)
    calibration, held_out = None, list[torch.Tensor]()
    if data:
        with clock.stage("calibration text"):
            search = getattr(methods.allocator, "beta", 0.0) is None
            calibration, held_out = calibration_set(
                config.calibration,
                source,
                texts,
                held_out=HELD_OUT_WINDOWS if search else 0,
            )
    skeleton = Skeleton.build(source, device=place)
    job = Job.prepare(
        config,
        source,
        skeleton,
        windows=calibration.windows if calibration else [],
        held_out=held_out,
        ranks=ranks,
    )
    store = Store.beside(target, writes=ranks.first)
    with store.locked(), full_disk(target):
        if restart:
            store.remove()
        ranks.wait()
        if store.open(_fingerprint(config, source, calibration)):
            logger.info("going on with the run in %s", store.path)
        try:
            with clock.stage("measure"):
                job.plan(store)
                if config.format == "bitmask":
                    _check_packable(job)
            with clock.stage("prune"):
                outcomes, _, _ = job.prune(store)
        except InputError:
            # Going on would fail again: leave nothing behind.
            store.remove()
            raise
        ranks.wait()
        if not ranks.first:
            ranks.wait()
            return PruneReport(target, read_results(target), first=False)
        # Hours later: what was put there meanwhile is not ours to replace.
        check_output(path, target)
        with clock.stage("write"):
            built = _build(job, store, target)
            hashes = _hashes(built)
        with staged_folder(target) as staging:
            for item in sorted(built.iterdir()):
                item.rename(staging / item.name)
            write_record(job, outcomes, staging)
            size = sum((staging / name).stat().st_size for name in hashes)
            results = make_results(
                job,
                outcomes,
                name=path.name if Path(model).is_dir() else str(model),
                hub_id=None if Path(model).is_dir() else str(model),
                calibration=calibration,
                seconds=clock.seconds,
                command=command,
                saved_bytes=size,
                files=hashes,
            )
            write_results(staging, results)
        store.remove()
        ranks.wait()
    return PruneReport(target, results)


def _check_packable(job: Job) -> None:
    """Refuse to pack a model of which no layer will be sparse enough.

    Raises:
        InputError: naming the least share.
    """
    layers = [layer for block in job.blocks for layer in block]
    most = max(removed_by(job.targets[x.name], x) / x.size for x in layers)
    if most < MIN_SPARSITY:
        raise InputError(
            f"Format bitmask: the sparsest layer will have {most:.0%} zeros. Expected "
            f"at least {MIN_SPARSITY:.0%}, from which a packed weight is smaller by "
            "enough: remove more, or leave format dense."
        )


def _build(job: Job, store: Store, target: Path) -> Path:
    """Write the folder inside the store, packed if asked for; return it."""
    dense = store.path / "dense"
    shutil.rmtree(dense, ignore_errors=True)
    dense.mkdir()
    write_folder(job, store, dense)
    if job.config.format == "dense":
        return dense
    packed = store.path / "packed"
    shutil.rmtree(packed, ignore_errors=True)
    pack(dense, output=packed)
    return packed


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


def _fingerprint(
    config: PruneConfig, source: Source, calibration: CalibrationSet | None
) -> dict[str, Any]:
    """Return what the bytes of the output depend on."""
    return {
        "version": __version__,
        "torch": torch.__version__,
        "config": config.model_dump(mode="json"),
        "weights": source.hashes,
        "model": hashlib.sha256(source.folder.config_text.encode()).hexdigest(),
        "calibration": calibration.sha256 if calibration else None,
    }
