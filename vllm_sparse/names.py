"""Module names: Hugging Face's in configurations, vLLM's in the engine.

vLLM fuses ``q_proj``, ``k_proj`` and ``v_proj`` into ``qkv_proj`` and may rename
prefixes. A rule written for either side must find its layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nmsparse.config import SparsityConfig
from nmsparse.targets import FUSED

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def model_class(vllm_config: VllmConfig) -> type | None:
    """Return the class vLLM builds for this model."""
    from vllm.model_executor.model_loader.utils import get_model_architecture

    found: type = get_model_architecture(vllm_config.model_config)[0]
    return found


def with_parts(name: str, packed: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a module's name, then the names of the parts fused into it."""
    parent, dot, last = name.rpartition(".")
    parts = packed.get(last) or FUSED.get(last, ())
    return [name, *(f"{parent}{dot}{part}" for part in parts if part != last)]


def translator(mapper: Any) -> Callable[[str], str]:
    """Return a function from Hugging Face's module names to vLLM's.

    Args:
        mapper: the model class's ``hf_to_vllm_mapper``, or None.
    """

    def translate(name: str) -> str:
        mapped = None if mapper is None else mapper._map_name(name)
        if mapped is None:
            return name
        # A mapper may also fold q_proj into qkv_proj; parts are resolved by us.
        parent, dot, _ = str(mapped).rpartition(".")
        return parent + dot + name.rpartition(".")[2]

    return translate


def to_vllm_names(config: SparsityConfig, mapper: Any) -> SparsityConfig:
    """Translate full-name targets from Hugging Face's names to vLLM's.

    Args:
        config: the configuration as written.
        mapper: the model class's ``hf_to_vllm_mapper``, or None.
    """
    if mapper is None:
        return config
    translate = translator(mapper)

    def target(written: str) -> str:
        by_name = "." in written and not written.startswith("re:")
        return translate(written) if by_name else written

    data = config.model_dump(mode="json")
    data["ignore"] = [target(written) for written in config.ignore]
    for name, group in config.groups.items():
        data["groups"][name]["targets"] = [target(t) for t in group.targets]
    return SparsityConfig.parse(data, source="sparsity config")
