"""Prune a tiny model's linear weights by magnitude: zeros in ordinary safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from nmsparse import parse_pattern, sparsify


def prune(dense: Path, folder: Path, pattern: str) -> Path:
    """Copy ``dense`` to ``folder``, its projections pruned to ``pattern``."""
    shutil.copytree(dense, folder)
    chosen = parse_pattern(pattern)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("_proj.weight"):
                tensors[name] = sparsify(tensor, chosen)
        save_file(tensors, path, metadata={"format": "pt"})
    return folder
