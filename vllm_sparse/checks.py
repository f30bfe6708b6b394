"""What activation sparsity cannot do, refused with the reason and the remedy.

Used twice with the same words: by ``vllm-sparse serve`` before the engine starts, and
by the session while the engine builds its layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.config import ConfigError
from nmsparse.pattern import Pattern, Unstructured

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def check_fits(name: str, pattern: Pattern, in_features: int, shards: int) -> None:
    """Refuse a pattern that does not fit a layer's input.

    Args:
        name: the layer.
        pattern: the activation pattern.
        in_features: K of the whole layer.
        shards: tensor-parallel ranks that K is split over, 1 if it is not.

    Raises:
        ConfigError: naming the layer.
    """
    local = in_features // shards
    shard = f" (a shard of {in_features} over tp={shards})" if shards > 1 else ""
    remedy = ", another tensor-parallel size" if shards > 1 else ""
    ignore = "add the layer to `ignore` in a --sparsity-config file."
    if isinstance(pattern, Unstructured):
        if shards > 1:
            raise ConfigError(
                f"{name}: unstructured sparsity {pattern} needs whole rows, but "
                f"in_features is {local}{shard}. Choose an N:M pattern{remedy}, or "
                f"{ignore}"
            )
    elif local % pattern.m:
        raise ConfigError(
            f"{name}: in_features {local}{shard} is not a multiple of m={pattern.m} "
            f"(pattern {pattern}). Choose an M that divides {local}{remedy}, or "
            f"{ignore}"
        )


def refuse_unsupported(vllm_config: VllmConfig) -> None:
    """Refuse features under which a layer's rows are not the step's tokens.

    Raises:
        ConfigError: naming the feature.
    """
    parallel = vllm_config.parallel_config
    hidden = {
        "micro-batching (--enable-dbo, --ubatch-size)": parallel.use_ubatching,
        "sequence-parallel MoE (expert parallelism with tensor and data parallelism)": (
            parallel.use_sequence_parallel_moe
        ),
        "prefill context parallelism": (
            getattr(parallel, "prefill_context_parallel_size", 1) > 1
        ),
        "--kv-sharing-fast-prefill": vllm_config.cache_config.kv_sharing_fast_prefill,
    }
    device = getattr(vllm_config.device_config, "device_type", None)
    if device == "cuda" and vllm_config.model_config.enable_sleep_mode:
        raise ConfigError(
            "Activation sparsity does not work with --enable-sleep-mode on a GPU: its "
            "counters are in memory that a sleeping engine gives back, and are read "
            "all the time. Turn one off."
        )
    for feature, used in hidden.items():
        if used:
            raise ConfigError(
                f"Activation sparsity does not work with {feature}: a layer would not "
                "know which tokens it sees. Turn one off."
            )


def offloads(vllm_config: VllmConfig) -> bool:
    """Return whether the engine keeps weights in the host's memory."""
    found = getattr(vllm_config, "offload_config", None)
    uva, prefetch = getattr(found, "uva", None), getattr(found, "prefetch", None)
    return bool(
        getattr(uva, "cpu_offload_gb", 0) or getattr(prefetch, "offload_group_size", 0)
    )
