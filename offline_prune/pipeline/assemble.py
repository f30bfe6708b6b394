"""The output folder: the source's files with the pruned tensors in their places."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from offline_prune.errors import InputError
from offline_prune.packing.folder import (
    CONFIG_NAME,
    INDEX_NAME,
    ModelFolder,
    open_weights,
)
from offline_prune.packing.save import save_weights

# Files of an earlier run of ours in the source: they would speak of another model.
OURS = (
    "results.json",
    "run.json",
    "report.md",
    "vllm_sparse_config.json",
    "vllm_sparse_provenance.json",
    "vllm_sparse_parameters.st",
    "calibration.json",
    "calibration.md",
)
# Other forms of the dense weights: beside the pruned ones they would only mislead.
_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"}
_WEIGHTS |= {".safetensors"}
Changed = Callable[[str], torch.Tensor | None]


def write_weights(
    folder: ModelFolder,
    target: Path,
    *,
    changed: Changed,
    added: Mapping[str, str],
) -> None:
    """Write every weight file of ``folder`` into ``target``, with changed tensors.

    Args:
        folder: the source.
        target: an existing folder.
        changed: gives the new value of a tensor, None if it stays as it is.
        added: new tensors to the name of their weight file.
    """
    with tqdm(
        total=len(folder.shards), desc="Writing", unit="file", disable=None
    ) as bar:
        for name in folder.shards:
            tensors: dict[str, torch.Tensor] = {}
            with open_weights(folder.path / name) as file:
                for tensor in file.keys():  # noqa: SIM118 (it is no dict)
                    new = changed(tensor)
                    old = file.get_tensor(tensor) if new is None else new
                    tensors[tensor] = old.contiguous()
                metadata = file.metadata()
            for tensor, place in added.items():
                if place == name:
                    value = changed(tensor)
                    assert value is not None
                    tensors[tensor] = value.contiguous()
            save_weights(tensors, target / name, metadata)
            bar.update()


def write_index(folder: ModelFolder, target: Path, added: Mapping[str, str]) -> None:
    """Write the index, unchanged unless tensors were added."""
    if folder.index is None:
        return
    if not added:
        shutil.copy2(folder.path / INDEX_NAME, target / INDEX_NAME)
        return
    index: dict[str, Any] = {**folder.index}
    names = dict(sorted({**folder.weight_map, **added}.items()))
    index["weight_map"] = names
    metadata = index.get("metadata")
    if isinstance(metadata, dict) and "total_size" in metadata:
        size = sum(_data_size(target / name) for name in folder.shards)
        index["metadata"] = {**metadata, "total_size": size}
    text = json.dumps(index, indent=2) + "\n"
    (target / INDEX_NAME).write_text(text, encoding="utf-8")


def write_config(
    folder: ModelFolder, target: Path, switches: Mapping[str, Any]
) -> None:
    """Copy ``config.json`` byte by byte, or with some keys changed."""
    if not switches:
        shutil.copy2(folder.path / CONFIG_NAME, target / CONFIG_NAME)
        return
    config = {**folder.config, **switches}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (target / CONFIG_NAME).write_text(text, encoding="utf-8")


def copy_others(folder: ModelFolder, target: Path) -> None:
    """Copy tokenizer, chat template, generation config and the rest as they are.

    Not weights in other forms, such as ``consolidated.safetensors``: they are dense.
    """
    for name in folder.others():
        if name.parts[0] in OURS or name.parts[0].startswith("."):
            continue
        if name.suffix in _WEIGHTS or name.name == "pytorch_model.bin.index.json":
            continue
        new = target / name
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder.path / name, new)


def check_space(output: Path, needed: int) -> None:
    """Refuse an output for which there is no room.

    Args:
        output: the folder to be written.
        needed: bytes.

    Raises:
        InputError: naming both sizes.
    """
    place = output.resolve().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise disk_full(output, f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} needed")


def disk_full(output: Path, found: str) -> InputError:
    """Return the error for a full disk."""
    return InputError(
        f"No room to write {output} ({found}). Expected room for the pruned weights "
        "twice: free some, or choose an output on another disk. Finished blocks are "
        "kept; the same command goes on."
    )


def is_full(error: OSError) -> bool:
    """Return whether an error says that the disk is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _data_size(path: Path) -> int:
    """Return the bytes of a file's tensors, without its header."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header
