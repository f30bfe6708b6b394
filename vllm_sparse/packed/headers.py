"""Types and shapes of the tensors of a model folder, without reading the weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from nmsparse.beside import beside
from nmsparse.errors import printable
from nmsparse.json_text import parse_json
from nmsparse.packed_manifest import PackedFormatError

_INDEX_NAME = "model.safetensors.index.json"


def read_headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of every tensor vLLM would load from ``folder``.

    Raises:
        PackedFormatError: naming the file that is missing, damaged or elsewhere.
    """
    index = folder / _INDEX_NAME
    names = {path.name for path in folder.glob("*.safetensors")}
    if index.is_file():
        names = _names(index)
    try:
        paths = [beside(folder, name) for name in sorted(names)]
    except ValueError as error:
        raise PackedFormatError(f"{folder}: weight files: {error}") from None
    if not paths:
        raise PackedFormatError(
            f"Model folder {folder} holds no safetensors. Expected the weights of a "
            "packed model: complete the folder."
        )
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="np") as file:  # no torch
                for name in file.keys():  # noqa: SIM118 (it is no dict)
                    part = file.get_slice(name)
                    found[name] = part.get_dtype(), tuple(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise PackedFormatError(
                f"Weight file {path} cannot be read ({printable(error)}). Expected a "
                "whole safetensors file: copy or download it again."
            ) from None
    return found


def _names(index: Path) -> set[str]:
    """Return the weight files an index names."""
    try:
        names = list(parse_json(index.read_bytes())["weight_map"].values())
        wrong = [name for name in names if not isinstance(name, str)]
        if wrong:
            raise TypeError(f"a file name is a {type(wrong[0]).__name__}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise PackedFormatError(
            f"{index} cannot be read ({printable(repr(error))}). Expected an index of "
            "weight files: copy it again."
        ) from None
    return set(names)
