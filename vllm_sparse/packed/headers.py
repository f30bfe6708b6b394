"""Types and shapes of the tensors of a model folder, without reading the weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from nmsparse.packed_manifest import PackedFormatError

_INDEX_NAME = "model.safetensors.index.json"


def read_headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of every tensor vLLM would load from ``folder``.

    Raises:
        PackedFormatError: naming the file that is missing or damaged.
    """
    index = folder / _INDEX_NAME
    paths = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PackedFormatError(
                f"{index} cannot be read ({error!r}). Expected an index of weight "
                "files: copy it again."
            ) from None
        paths = [folder / str(name) for name in sorted(names)]
    if not paths:
        raise PackedFormatError(
            f"Model folder {folder} holds no safetensors. Expected the weights of a "
            "packed model: complete the folder."
        )
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dict)
                    part = file.get_slice(name)
                    found[name] = part.get_dtype(), tuple(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise PackedFormatError(
                f"Weight file {path} cannot be read ({error}). Expected a whole "
                "safetensors file: copy or download it again."
            ) from None
    return found
