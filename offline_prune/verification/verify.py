"""``verify``: compare a pruned folder with its ``results.json``, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nmsparse.packed_manifest import QUANT_METHOD, PackedFormatError, PackedManifest
from offline_prune.errors import InputError
from offline_prune.packing.config_text import KEY
from offline_prune.packing.folder import CONFIG_NAME, ModelFolder
from offline_prune.report.results import RESULTS_NAME, Results, read_results
from offline_prune.verification.counts import count_problems
from offline_prune.verification.files import file_problems
from offline_prune.verification.sidecar import sidecar_findings
from offline_prune.verification.tensors import TensorIndex


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """What was found in one layer.

    Attributes:
        name: of the module.
        zeros: zeros in its weight, None if the weight could not be read.
        size: number of its weights, by ``results.json``.
        problems: one sentence each, empty if the layer is as it should be.
    """

    name: str
    zeros: int | None
    size: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found in a folder.

    Attributes:
        problems: one sentence each; a problem of a layer begins with its name.
        layers: every layer of ``results.json``; empty if the weights could not be read.
        notes: what could not be compared, and why; no problem.
    """

    problems: tuple[str, ...]
    layers: tuple[LayerCheck, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    @property
    def zeros(self) -> int:
        """Zeros in all layers that could be read."""
        return sum(layer.zeros or 0 for layer in self.layers)


def verify(folder: str | Path) -> Verification:
    """Check a pruned folder, dense with zeros or packed.

    Checked are: hashes of the files; of every pruned layer its shape, N:M pattern, the
    exact number of zeros, and that its numbers are finite; the budget; the sidecar.
    Memory is constant: weights are read a few million elements at a time.

    Args:
        folder: what ``offline-prune run`` made, or a packed copy of it.

    Raises:
        InputError: if ``folder`` is no model folder at all. Everything else is a
            problem of the result.
    """
    path = Path(folder)
    if not (path / CONFIG_NAME).is_file() and not (path / RESULTS_NAME).is_file():
        raise InputError(
            f"Folder {path} has neither {CONFIG_NAME} nor {RESULTS_NAME}. Expected a "
            "model folder that offline-prune run made: check the path."
        )
    try:
        results = read_results(path)
    except InputError as error:
        return Verification(tuple(str(error).splitlines()))
    try:
        model = ModelFolder.open(path)
        manifest = _manifest(model)
    except (InputError, PackedFormatError) as error:
        return Verification((str(error), *file_problems(path, results)))
    notes = []
    rewritten: frozenset[str] = frozenset()
    saved = results.sizes.saved_format if results.sizes is not None else "dense"
    if manifest is not None and saved == "dense":
        rewritten = frozenset(_rewritten(model, results))
        notes.append(
            "The folder was packed afterwards, which rewrote its weight files: their "
            "hashes are not compared, but every weight is checked."
        )
    problems = list(file_problems(path, results, rewritten=rewritten))
    index = TensorIndex.of(model)
    problems += index.problems
    layers = tuple(_layers(index, results, manifest))
    problems += [problem for layer in layers for problem in layer.problems]
    problems += count_problems(results)
    found, remarks = sidecar_findings(path, results)
    return Verification((*problems, *found), layers, (*notes, *remarks))


def _manifest(model: ModelFolder) -> PackedManifest | None:
    """Return the manifest of a packed folder, None if it is dense."""
    found = model.config.get(KEY)
    if not isinstance(found, dict) or found.get("quant_method") != QUANT_METHOD:
        return None
    return PackedManifest.parse(found, source=f"{CONFIG_NAME}: {KEY}")


def _rewritten(model: ModelFolder, results: Results) -> Iterator[str]:
    """Yield the recorded files that packing does not copy as they are."""
    copied = {str(path) for path in model.names()}
    for name in results.files:
        if (model.path / name).is_file() and name not in copied:
            yield name


def _layers(
    index: TensorIndex, results: Results, manifest: PackedManifest | None
) -> Iterator[LayerCheck]:
    """Yield the check of every layer."""
    # Here, so that what needs no torch is done before it is imported.
    from offline_prune.verification.layer import check_layer

    packed = manifest.modules if manifest is not None else {}
    # disable=None: no bar where nobody watches (not a terminal).
    for layer in tqdm(results.layers, desc="Layers", unit="layer", disable=None):
        zeros, problems = check_layer(index, layer, packed)
        yield LayerCheck(layer.name, zeros, layer.size, tuple(problems))
