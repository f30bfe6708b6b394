"""The sessions of the engines in this process: one each, made at its first layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.config import get_current_vllm_config_or_none
from vllm.utils.import_utils import resolve_obj_by_qualname

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.packed_manifest import QUANT_METHOD as PACKED
from vllm_sparse import runner_hooks
from vllm_sparse.execution import Execution
from vllm_sparse.options import OPTIONS_KEY, Found, resolve_options
from vllm_sparse.options import local_model_folder as find_folder
from vllm_sparse.session import Session

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

    from vllm_sparse.phases import TokenPhases

# Sessions by identity of an engine's compilation configuration. vLLM builds nested text
# models and drafts under copies of its configuration, but all of them share this part,
# in which attention layers register themselves. It is kept, so no identity comes twice.
_SESSIONS: dict[int, Session] = {}
_INACTIVE: dict[int, Any] = {}


def find_session(vllm_config: Any) -> Session | None:
    """Return the session of an engine in this process, None if it is not active."""
    return _SESSIONS.get(id(vllm_config.compilation_config))


def find_phases(vllm_config: Any) -> TokenPhases | None:
    """Return the token phases of an engine in this process."""
    session = find_session(vllm_config)
    return session.phases if session else None


def prepare_session(vllm_config: Any, model: torch.nn.Module) -> None:
    """Let the engine's session measure, when its model is loaded."""
    session = find_session(vllm_config)
    if session is not None:
        session.prepare(model)


def start_counting(vllm_config: Any) -> None:
    """Let the engine's session count from zero, when start-up has ended."""
    session = find_session(vllm_config)
    if session is not None:
        session.start_counting()


def current_session() -> Session | None:
    """Return the session of the engine being built, making it at its first layer.

    Raises:
        ConfigError: if the engine's sparsity configuration cannot be used.
    """
    vllm_config = get_current_vllm_config_or_none()
    if vllm_config is None or vllm_config.model_config is None:
        return None
    key = id(vllm_config.compilation_config)
    if key in _INACTIVE:
        return None
    session = _SESSIONS.get(key) or _make_session(vllm_config)
    if session is None:
        _INACTIVE[key] = vllm_config.compilation_config
        return None
    _SESSIONS[key] = session
    session.sign(vllm_config)
    return session


def _make_session(vllm_config: VllmConfig) -> Session | None:
    extra = vllm_config.additional_config
    options = extra.get(OPTIONS_KEY) if isinstance(extra, dict) else None
    if options is not None and not isinstance(options, dict):
        raise ConfigError(
            f"additional_config[{OPTIONS_KEY!r}] is {options!r}. Expected an object, "
            'for example {"activation_sparsity": "8:16"}.'
        )
    model = vllm_config.model_config
    folder: Path | None = find_folder(model.model, model.revision)
    found = resolve_options(options, folder)
    packed = getattr(model, "quantization", None) == PACKED
    if found is None and packed and (options or {}).get("enabled", True):
        # A packed folder wants its kernels without being asked.
        found = Found(SparsityConfig(), "packed checkpoint", None)
    execution = Execution.parse(options or {}, f"additional_config[{OPTIONS_KEY!r}]")
    if found is None:
        return None
    session = Session(vllm_config, found, execution)
    runner_hooks.install(find_phases, prepare_session)
    # The platform has put in the name of a class.
    worker = resolve_obj_by_qualname(vllm_config.parallel_config.worker_cls)
    runner_hooks.install_start(worker, find_phases, start_counting)
    return session
