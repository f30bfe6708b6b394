"""Write the files of a converted folder: weights converted, the index, copies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nmsparse.packed_manifest import BITMASK, VALUES, WEIGHT, Headers
from offline_prune.packing.folder import INDEX_NAME, ModelFolder

# Bytes an element, by safetensors' names of the types a weight or its parts can have.
_ITEM_BYTES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}


def write_files(
    folder: ModelFolder,
    target: Path,
    convert: Callable[[Path, Path], None],
    *,
    label: str,
) -> None:
    """Convert every weight file and copy all files that need no change.

    Args:
        folder: the source.
        target: an existing empty folder.
        convert: reads its first argument and writes its second.
        label: what is being done, before the progress bar.
    """
    others = folder.others()
    names = [*map(Path, folder.shards), *others]
    total = sum((folder.path / name).stat().st_size for name in names)
    # disable=None: no bar where nobody watches (not a terminal).
    with tqdm(
        total=total, desc=label, unit="B", unit_scale=True, disable=None
    ) as progress:
        for name in names:
            source, new = folder.path / name, target / name
            if name in others:
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, new)
            else:
                convert(source, new)
            progress.update(source.stat().st_size)


def write_index(
    folder: ModelFolder, target: Path, modules: Collection[str], *, packed: bool
) -> int:
    """Write the index of the new weight files, if the source has one.

    Args:
        folder: the source.
        target: the folder with the new weight files.
        modules: the modules that were converted.
        packed: whether they are packed now, or dense again.

    Returns:
        Size of the new weight files in bytes.
    """
    made = replace(folder, path=target)
    if folder.index is not None:
        names = dict(_renamed(folder.weight_map, set(modules), packed=packed))
        index: dict[str, Any] = {**folder.index, "weight_map": names}
        metadata = index.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
            change = _size(made.headers(), modules) - _size(folder.headers(), modules)
            size = metadata["total_size"] + change
            index["metadata"] = {**metadata, "total_size": size}
        text = json.dumps(index, indent=2) + "\n"
        (target / INDEX_NAME).write_text(text, encoding="utf-8")
    return made.weight_bytes


def _renamed(
    weight_map: dict[str, str], modules: set[str], *, packed: bool
) -> list[tuple[str, str]]:
    """Return the entries of the new weight map, in the order of the old one."""
    before, *after = (WEIGHT, BITMASK, VALUES) if packed else (BITMASK, WEIGHT)
    entries = []
    for name, file in weight_map.items():
        module = name.removesuffix(before)
        if module != name and module in modules:
            entries += [(module + suffix, file) for suffix in after]
        elif packed or name.removesuffix(VALUES) not in modules:
            entries.append((name, file))
    return entries


def _size(headers: Headers, modules: Collection[str]) -> int:
    """Return the bytes of the modules' tensors."""
    total = 0
    for module in modules:
        for suffix in (WEIGHT, BITMASK, VALUES):
            kind, shape = headers.get(module + suffix, ("U8", (0,)))
            elements = 1
            for size in shape:
                elements *= size
            total += elements * _ITEM_BYTES[kind]
    return total
