"""Where the configuration of an engine comes from.

In order: ``--additional-config '{"vllm_sparse": {...}}'`` (which ``vllm-sparse serve``
fills in), then the sidecar ``vllm_sparse_config.json`` of the model folder. With
neither the plugin stays out of the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nmsparse.config import ConfigError, Phase, SparsityConfig
from nmsparse.sidecar import SIDECAR_NAME, read_config, read_sidecar
from nmsparse.suggest import unknown
from vllm_sparse.execution import CANARY, EXECUTION_KEYS, Execution

OPTIONS_KEY = "vllm_sparse"
# Written by the session, so that they are part of vLLM's compile-cache key: of the
# configuration, and of what was made of the layers.
FINGERPRINT, LAYERS = "fingerprint", "layers"
SIGNATURES = (FINGERPRINT, LAYERS)
# What ``vllm-sparse serve`` resolved the configuration from, for people to read.
SOURCE = "source"
# Where the parameters file of an inline configuration lies.
FOLDER = "folder"
# What goes with ``activation_sparsity``: options that need no parameters.
ONLINE = ("criterion", "mitigation")
_KEYS = (
    "enabled",
    "activation_sparsity",
    *ONLINE,
    "phase",
    "config",
    "config_file",
    FOLDER,
    SOURCE,
    *EXECUTION_KEYS,
)
_SOURCES = ("activation_sparsity", "config", "config_file")
_WHERE = f"additional_config[{OPTIONS_KEY!r}]"


class Found(NamedTuple):
    """A configuration, and what is known about where it came from.

    Attributes:
        config: what to sparsify.
        source: where it came from, for people to read.
        folder: where its parameters file lies; None if it has none.
    """

    config: SparsityConfig
    source: str
    folder: Path | None


def resolve_options(
    options: Mapping[str, Any] | None, model_folder: Path | None
) -> Found | None:
    """Return the configuration and where it came from, or None to stay dense.

    Args:
        options: the value of ``additional_config["vllm_sparse"]``; None if absent.
            Keys: ``enabled`` (bool), one of ``activation_sparsity`` (pattern),
            ``config`` (inline object) and ``config_file`` (path); ``criterion`` and
            ``mitigation`` (names) of ``activation_sparsity``; ``phase``, which
            overrides the configuration's; ``folder``, an absolute path, where an inline
            configuration's parameters lie; ``source``, a text that is shown; and those
            of :class:`~vllm_sparse.execution.Execution`. ``sparse_weights: auto`` or
            ``dense_weights: auto`` alone is enough to be active.
        model_folder: local folder of the model, if known.

    Raises:
        ConfigError: for unknown keys, wrong types, or a configuration in error.
    """
    given = {k: v for k, v in (options or {}).items() if k not in SIGNATURES}
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
    _check_companions(given)
    phase = given.get("phase")
    found = _load(sources[0], given) if sources else None
    if found is None and model_folder is not None:
        sidecar = read_sidecar(model_folder)
        if sidecar is not None:
            source = f"sidecar {model_folder / SIDECAR_NAME}"
            found = Found(sidecar, source, model_folder)
    asked = [k for k in ("sparse_weights", "dense_weights") if given.get(k) == "auto"]
    if found is None and asked:
        found = Found(SparsityConfig(), f"{asked[0]}: auto", None)
    if found is None:
        if phase is not None:
            raise ConfigError(
                f"{_WHERE}.phase is set, but no sparsity is. Expected also one of "
                f"{', '.join(_SOURCES)}, or a model folder with {SIDECAR_NAME}."
            )
        return None
    config, source, folder = found
    if phase is not None:
        data = config.model_dump(mode="json") | {"phase": phase}
        config = SparsityConfig.parse(data, source=f"{_WHERE}.phase")
    if CANARY in given and config.phase is Phase.PREFILL:
        raise ConfigError(
            f"{_WHERE}.{CANARY} is set, but the phase is prefill: the canary compares "
            "generated tokens, which stay dense. Expected phase decode or both, or no "
            "canary."
        )
    if config.parameters is None:
        folder = None
    return Found(config, str(given.get(SOURCE, source)), folder)


def _check_companions(given: Mapping[str, Any]) -> None:
    """Refuse options that say something about another one that is not given.

    Raises:
        ConfigError: naming both.
    """
    for key in ONLINE:
        if key in given and "activation_sparsity" not in given:
            raise ConfigError(
                f"{_WHERE}.{key} is set, but activation_sparsity is not. Expected "
                "both: a configuration names them for each of its groups."
            )
    if FOLDER in given and "config" not in given:
        raise ConfigError(
            f"{_WHERE}.{FOLDER} is set, but config is not. Expected it with an inline "
            "configuration alone: the parameters of a file lie beside it."
        )


def _load(key: str, given: Mapping[str, Any]) -> Found:
    value = given[key]
    if key == "config":
        config = SparsityConfig.parse(value, source=f"{_WHERE}.config")
        return Found(config, _WHERE, _folder_of(config, given.get(FOLDER)))
    if not isinstance(value, str):
        raise ConfigError(f"{_WHERE}.{key} is {value!r}. Expected a string.")
    if key == "config_file":
        # Absolute: processes may have other working directories.
        path = Path(value)
        return Found(read_config(path), value, path.absolute().parent)
    config = _uniform(value, given.get("criterion"), given.get("mitigation"))
    return Found(config, f"activation sparsity {value}", None)


def _folder_of(config: SparsityConfig, given: Any) -> Path | None:
    """Return the folder of an inline configuration's parameters."""
    if given is None and config.parameters is None:
        return None
    if not isinstance(given, str) or not Path(given).is_absolute():
        raise ConfigError(
            f"{_WHERE}.{FOLDER} is {given!r}. Expected the absolute path of the folder "
            "with the parameters file of the inline configuration: add it, or use "
            "config_file."
        )
    return Path(given)


def _uniform(pattern: str, criterion: Any, mitigation: Any) -> SparsityConfig:
    """Return one pattern for all decoder linears, with what needs no parameters."""
    if criterion is None and mitigation is None:
        return SparsityConfig.uniform(pattern)
    if isinstance(mitigation, str):
        mitigation = [name.strip() for name in mitigation.split(",") if name.strip()]
    data = SparsityConfig.uniform(pattern).model_dump(mode="json")
    activation = data["groups"]["default"]["activation"]
    if criterion is not None:
        activation["criterion"] = criterion
    if mitigation is not None:
        activation["mitigation"] = mitigation
    config = SparsityConfig.parse(data, source=_WHERE)
    found = config.groups["default"].activation
    assert found is not None
    if found.needs_parameters:
        names = ", ".join((found.criterion, *found.mitigation))
        raise ConfigError(
            f"{_WHERE}: {names} needs parameters that are fitted to a model. Expected "
            "a criterion and mitigations without any: make a model folder that holds "
            "them with `offline-prune calibrate`, and serve that."
        )
    return config


def local_model_folder(model: str, revision: str | None = None) -> Path | None:
    """Return the local folder of a model: itself, or its place in the hub cache.

    Nothing is downloaded. Returns None if the model is not on this machine.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder.absolute()
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
    """Bring a hub model's sidecar and parameters into the local cache, if it has any.

    Returns:
        Why they could not be looked for; None if they were, or if the model is local.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    if constants.HF_HUB_OFFLINE or Path(model).exists():
        return None
    try:
        path = hf_hub_download(model, SIDECAR_NAME, revision=revision, token=token)
        file = _parameters_file(Path(path))
        if file is not None:
            hf_hub_download(model, file, revision=revision, token=token)
    except (EntryNotFoundError, HFValidationError):
        return None
    except OSError as error:  # no such model, no access, no network
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def _parameters_file(sidecar: Path) -> str | None:
    """Return the file a sidecar names; whoever uses the sidecar reports its errors."""
    try:
        parameters = read_config(sidecar).parameters
    except ConfigError:
        return None
    return None if parameters is None else parameters.file
