"""Where the configuration of an engine comes from.

In order: ``--additional-config '{"vllm_sparse": {...}}'`` (which ``vllm-sparse serve``
fills in), then the sidecar ``vllm_sparse_config.json`` of the model folder. With
neither the plugin stays out of the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.sidecar import SIDECAR_NAME, read_config, read_sidecar
from nmsparse.suggest import unknown
from vllm_sparse.execution import CHOICES, Execution

OPTIONS_KEY = "vllm_sparse"
# Written by the session, so that it is part of vLLM's compile-cache key.
FINGERPRINT = "fingerprint"
# What ``vllm-sparse serve`` resolved the configuration from, for people to read.
SOURCE = "source"
_KEYS = (
    "enabled",
    "activation_sparsity",
    "phase",
    "config",
    "config_file",
    SOURCE,
    *CHOICES,
)
_SOURCES = ("activation_sparsity", "config", "config_file")
_WHERE = f"additional_config[{OPTIONS_KEY!r}]"


def resolve_options(
    options: Mapping[str, Any] | None, model_folder: Path | None
) -> tuple[SparsityConfig, str] | None:
    """Return the configuration and where it came from, or None to stay dense.

    Args:
        options: the value of ``additional_config["vllm_sparse"]``; None if absent.
            Keys: ``enabled`` (bool), one of ``activation_sparsity`` (pattern),
            ``config`` (inline object) and ``config_file`` (path); ``phase``, which
            overrides the configuration's; ``source``, a text that is shown; and those
            of :class:`~vllm_sparse.execution.Execution`. ``sparse_weights: auto`` or
            ``dense_weights: auto`` alone is enough to be active.
        model_folder: local folder of the model, if known.

    Raises:
        ConfigError: for unknown keys, wrong types, or a configuration in error.
    """
    given = {k: v for k, v in (options or {}).items() if k != FINGERPRINT}
    for key in given:
        if key not in _KEYS:
            raise ConfigError(f"{_WHERE}: {unknown('key', str(key), _KEYS)}")
    Execution.parse(given, _WHERE)
    enabled = given.pop("enabled", True)
    if not isinstance(enabled, bool):
        raise ConfigError(f"{_WHERE}.enabled is {enabled!r}. Expected true or false.")
    if not enabled:
        return None
    sources = [key for key in _SOURCES if key in given]
    if len(sources) > 1:
        raise ConfigError(
            f"{_WHERE} has {' and '.join(sources)}. Expected one of "
            f"{', '.join(_SOURCES)}: remove the others."
        )
    phase = given.get("phase")
    found = _load(sources[0], given[sources[0]]) if sources else None
    if found is None and model_folder is not None:
        sidecar = read_sidecar(model_folder)
        if sidecar is not None:
            found = sidecar, f"sidecar {model_folder / SIDECAR_NAME}"
    asked = [k for k in ("sparse_weights", "dense_weights") if given.get(k) == "auto"]
    if found is None and asked:
        found = SparsityConfig(), f"{asked[0]}: auto"
    if found is None:
        if phase is not None:
            raise ConfigError(
                f"{_WHERE}.phase is set, but no sparsity is. Expected also one of "
                f"{', '.join(_SOURCES)}, or a model folder with {SIDECAR_NAME}."
            )
        return None
    config, source = found
    if phase is not None:
        data = config.model_dump(mode="json") | {"phase": phase}
        config = SparsityConfig.parse(data, source=f"{_WHERE}.phase")
    return config, str(given.get(SOURCE, source))


def _load(key: str, value: Any) -> tuple[SparsityConfig, str]:
    if key == "config":
        return SparsityConfig.parse(value, source=f"{_WHERE}.config"), _WHERE
    if not isinstance(value, str):
        raise ConfigError(f"{_WHERE}.{key} is {value!r}. Expected a string.")
    if key == "config_file":
        return read_config(Path(value)), value
    return SparsityConfig.uniform(value), f"activation sparsity {value}"


def local_model_folder(model: str, revision: str | None = None) -> Path | None:
    """Return the local folder of a model: itself, or its place in the hub cache.

    Nothing is downloaded. Returns None if the model is not on this machine.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, SIDECAR_NAME, revision=revision)
    except HFValidationError:  # a path or URI, not a hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def download_sidecar(
    model: str, revision: str | None = None, token: str | bool | None = None
) -> str | None:
    """Bring a hub model's sidecar into the local cache, if it has one.

    Returns:
        Why it could not be looked for; None if it was, or if the model is local.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    if constants.HF_HUB_OFFLINE or Path(model).exists():
        return None
    try:
        hf_hub_download(model, SIDECAR_NAME, revision=revision, token=token)
    except (EntryNotFoundError, HFValidationError):
        return None
    except OSError as error:  # no such model, no access, no network
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
