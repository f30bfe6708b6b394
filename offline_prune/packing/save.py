"""Save a weight file as others read it, and say what the system said if that fails."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

# How Rust ends the text of an error of the operating system.
_CODE = re.compile(r"\(os error (\d+)\)")


def save_weights(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None
) -> None:
    """Write a safetensors file.

    Raises:
        OSError: if the system refuses, for example because the disk is full.
            safetensors itself raises an error without its number.
    """
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        found = _CODE.search(str(error))
        if found is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path)) from None
    # safetensors makes private files; a model folder is read by others.
    path.chmod(0o644)
