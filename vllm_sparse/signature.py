"""What compiled code depends on, made part of vLLM's compile-cache key.

vLLM hashes ``additional_config`` into the key, at the first forward pass, after weights
are loaded. Compiled code bakes in patterns and phase, which may come from elsewhere (a
sidecar), and which of our methods runs a layer, which may depend on its weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.config import ConfigError
from vllm_sparse.options import OPTIONS_KEY

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def sign(vllm_config: VllmConfig, key: str, text: str) -> None:
    """Record a text in the engine's configuration.

    Args:
        vllm_config: the engine's.
        key: one of ``options.SIGNATURES``.
        text: what is recorded.

    Raises:
        ConfigError: if there is no place for it.
    """
    extra = vllm_config.additional_config
    if not isinstance(extra, dict):
        raise ConfigError(
            f"additional_config is a {type(extra).__name__}. Expected a dict: "
            "activation sparsity records its fingerprint in it."
        )
    options = extra.get(OPTIONS_KEY) or {}
    if options.get(key) != text:
        signed = {**options, key: text}
        vllm_config.additional_config = {**extra, OPTIONS_KEY: signed}
