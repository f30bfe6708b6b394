"""``pack`` and ``unpack``: a folder in, a new folder out, one weight file at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nmsparse.packed_manifest import QUANT_METHOD, PackedManifest
from offline_prune.errors import InputError
from offline_prune.packing.config_text import KEY, insert, remove
from offline_prune.packing.files import write_files, write_index
from offline_prune.packing.folder import CONFIG_NAME, ModelFolder
from offline_prune.packing.refuse import (
    check_architecture,
    check_dense,
    check_index,
    check_output,
    nothing_to_pack,
)
from offline_prune.staging import staged_folder

# Share of zeros from which a weight is packed.
MIN_SPARSITY = 0.4


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done.

    Attributes:
        folder: the new folder.
        modules: number of weights that were packed or unpacked.
        linears: number of weights that could have been.
        bytes_before: size of the weight files of the source.
        bytes_after: size of the new weight files.
    """

    folder: Path
    modules: int
    linears: int
    bytes_before: int
    bytes_after: int


def pack(
    source: str | Path, *, output: str | Path, min_sparsity: float = MIN_SPARSITY
) -> Conversion:
    """Write a copy of a pruned model folder whose sparse linear weights are packed.

    Every other tensor and file is byte-identical, and so is what :func:`unpack` makes
    of the copy; only ``-0.0`` in a packed weight becomes ``+0.0``.

    Args:
        source: a Hugging Face folder with zeros in its weights.
        output: the new folder; it appears whole or not at all.
        min_sparsity: share of zeros from which a linear of a decoder block is packed.

    Raises:
        InputError: if ``source`` cannot be packed or ``output`` cannot be used.
    """
    if not 0.0 <= min_sparsity < 1.0:
        raise InputError(
            f"min_sparsity {min_sparsity} is invalid. Expected a share of zeros from 0 "
            "to below 1, such as 0.4."
        )
    folder, target = ModelFolder.open(Path(source)), Path(output)
    check_dense(folder)
    check_architecture(folder)
    check_output(folder.path, target)
    check_index(folder)
    # Here, so that what can be refused is refused before torch is imported.
    from offline_prune.packing.linears import packable_linears
    from offline_prune.packing.shards import pack_file

    linears = packable_linears(folder)
    sparsity: dict[str, float] = {}

    def convert(file: Path, new: Path) -> None:
        sparsity.update(pack_file(file, new, linears, min_sparsity=min_sparsity))

    with staged_folder(target) as staging:
        write_files(folder, staging, convert, label="Packing")
        packed = [name for name, share in sparsity.items() if share >= min_sparsity]
        if not packed:
            raise nothing_to_pack(folder.path, sparsity, min_sparsity)
        manifest = PackedManifest.of({name: linears[name] for name in packed})
        text = insert(folder.config_text, manifest)
        (staging / CONFIG_NAME).write_bytes(text.encode("utf-8"))
        after = write_index(folder, staging, packed, packed=True)
    return Conversion(target, len(packed), len(sparsity), folder.weight_bytes, after)


def unpack(source: str | Path, *, output: str | Path) -> Conversion:
    """Write a dense copy of a packed folder: the inverse of :func:`pack`.

    Args:
        source: a packed folder.
        output: the new folder; it appears whole or not at all.

    Raises:
        InputError: if ``source`` is not packed or ``output`` cannot be used.
        nmsparse.packed_manifest.PackedFormatError: if ``source`` is damaged.
    """
    folder, target = ModelFolder.open(Path(source)), Path(output)
    found = folder.config.get(KEY)
    if not isinstance(found, dict) or found.get("quant_method") != QUANT_METHOD:
        raise InputError(
            f"Model folder {folder.path} is not packed (no {KEY} with quant_method "
            f"{QUANT_METHOD} in {CONFIG_NAME}). Expected what offline-prune pack makes."
        )
    manifest = PackedManifest.parse(found, source=f"{folder.path}/{CONFIG_NAME}: {KEY}")
    check_output(folder.path, target)
    check_index(folder)
    manifest.check_headers(folder.headers(), source=str(folder.path))
    from offline_prune.packing.shards import unpack_file

    def convert(file: Path, new: Path) -> None:
        unpack_file(file, new, manifest.modules)

    with staged_folder(target) as staging:
        write_files(folder, staging, convert, label="Unpacking")
        text = remove(folder.config_text, manifest)
        (staging / CONFIG_NAME).write_bytes(text.encode("utf-8"))
        after = write_index(folder, staging, manifest.modules, packed=False)
    count = len(manifest.modules)
    return Conversion(target, count, count, folder.weight_bytes, after)
