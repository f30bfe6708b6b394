"""The parameters file beside a sidecar: safetensors, named by hash in the sidecar.

A tensor is called ``<Hugging Face module>.<parameter>``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nmsparse.beside import beside
from nmsparse.config import ConfigError, ParametersFile
from nmsparse.errors import printable
from nmsparse.parameters.tensors import check_tensor

if TYPE_CHECKING:
    import torch

PARAMETERS_NAME = "vllm_sparse_parameters.st"

_REMEDY = "copy the folder again, or calibrate the model again"


def write_parameters(
    folder: Path, parameters: Mapping[str, Mapping[str, torch.Tensor]]
) -> ParametersFile:
    """Write the file whole or not at all (temporary file, then rename).

    Args:
        folder: the model folder.
        parameters: name of a module, as Hugging Face has it, to its tensors by name.

    Returns:
        What belongs into ``SparsityConfig.parameters``.

    Raises:
        ConfigError: if ``folder`` is no folder.
        ValueError: if a tensor cannot be a parameter.
    """
    from safetensors.torch import save_file

    if not folder.is_dir():
        raise ConfigError(
            f"Model folder {folder} does not exist. Expected an existing folder."
        )
    tensors: dict[str, torch.Tensor] = {}
    for module, found in parameters.items():
        for name, tensor in found.items():
            try:
                check_tensor(name, tensor)
            except ValueError as error:
                raise ValueError(f"{module}: {error}") from None
            # Copies: parts of a fused layer share tensors, which the format cannot.
            tensors[f"{module}.{name}"] = tensor.detach().cpu().clone().contiguous()
    path = folder / PARAMETERS_NAME
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{PARAMETERS_NAME}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        with Path(temporary).open("rb") as file:
            os.fsync(file.fileno())
        digest = _sha256(Path(temporary))
        # mkstemp is private to the user; a model folder is read by others.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return ParametersFile(file=PARAMETERS_NAME, sha256=digest)


def read_parameters(
    folder: Path, file: ParametersFile
) -> dict[str, dict[str, torch.Tensor]]:
    """Read and verify the file a configuration names.

    Args:
        folder: where the configuration lies.
        file: its name and hash.

    Returns:
        Name of a module to its tensors by name.

    Raises:
        ConfigError: if the file is missing, is another one than the configuration was
            made with, or holds something else than parameters.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        path = beside(folder, file.file)
        digest = _sha256(path)
    except FileNotFoundError:
        raise ConfigError(
            f"Parameters file {folder / file.file} does not exist. Expected it beside "
            f"the sparsity configuration that names it: {_REMEDY}."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Parameters file {printable(folder / file.file)} cannot be read "
            f"({printable(error)}). Expected a safetensors file."
        ) from None
    if digest != file.sha256:
        raise ConfigError(
            f"Parameters file {path} has sha256 {digest}. Expected {file.sha256}, "
            f"which the sparsity configuration names: {_REMEDY}."
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ConfigError(
            f"Parameters file {path} is no safetensors file ({printable(error)}). "
            "Expected one written by `offline-prune calibrate`."
        ) from None
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(tensors):
        module, _, name = key.rpartition(".")
        try:
            check_tensor(name, tensors[key])
            if not module:
                raise ValueError("it belongs to no module.")
        except ValueError as error:
            raise ConfigError(
                f"Parameters file {path}: {printable(key)}: {error} Upgrade "
                "vllm-sparse, or calibrate the model again."
            ) from None
        found.setdefault(module, {})[name] = tensors[key]
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
