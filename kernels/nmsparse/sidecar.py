"""The sidecar ``vllm_sparse_config.json``: a model folder that describes itself.

Stock transformers and stock vLLM ignore the file, so the folder stays usable without
this project.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from nmsparse.beside import beside
from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.errors import printable
from nmsparse.json_text import parse_json

SIDECAR_NAME = "vllm_sparse_config.json"
# A model with 50,000 experts that are all named in full has less.
MAX_BYTES = 64 << 20


def read_config(path: Path) -> SparsityConfig:
    """Read a configuration file.

    Raises:
        ConfigError: if the file is missing, is not JSON, or does not validate.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
        data = parse_json(content.decode("utf-8"), strict=True)
    except FileNotFoundError:
        raise ConfigError(
            f"Sparsity config {path} does not exist. Expected a JSON file such as a "
            f"model folder's {SIDECAR_NAME}: check the path."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: also of a path with a NUL
        raise ConfigError(
            f"Sparsity config {printable(path)} cannot be read ({printable(error)}). "
            "Expected a JSON file."
        ) from None
    if not isinstance(data, dict):
        raise ConfigError(
            f"Sparsity config {path} holds a {type(data).__name__}. "
            "Expected a JSON object."
        )
    return SparsityConfig.parse(data, source=str(path))


def read_sidecar(folder: Path) -> SparsityConfig | None:
    """Read the sidecar of a model folder; None if it has none.

    Raises:
        ConfigError: if there is one and it cannot be used, or if it is no file.
    """
    try:
        path = beside(folder, SIDECAR_NAME)
    except ValueError as error:
        raise ConfigError(f"Sparsity config: {error}") from None
    return read_config(path) if path.exists() else None


def write_sidecar(folder: Path, config: SparsityConfig) -> Path:
    """Write the sidecar whole or not at all (temporary file, then rename).

    Raises:
        ConfigError: if ``folder`` is no folder.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"Model folder {folder} does not exist. Expected an existing folder."
        )
    path = folder / SIDECAR_NAME
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{SIDECAR_NAME}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(config.to_json())
            file.flush()
            os.fsync(file.fileno())
        # mkstemp is private to the user; a model folder is read by others.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
