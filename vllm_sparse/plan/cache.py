"""The KV cache of a model: what a token adds, and what a step reads of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nmsparse.config import ConfigError
from vllm_sparse.plan.modules import Module, Role

_FUSED = ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "W_pack")
_OUTPUT = ("o_proj", "c_proj", "dense", "out_proj")
_LATENT = "kv_a_proj_with_mqa"
# Of these, files may lack the place of windows; it is the architecture's.
_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6}


@dataclass(frozen=True, slots=True)
class Cache:
    """Elements of one token in every layer with attention, and windows.

    Attributes:
        elements: keys and values of a token, by layer, on one rank.
        windows: tokens that a layer looks back at most, by layer; None for all.
        size: bytes of an element.
    """

    elements: tuple[int, ...]
    windows: tuple[int | None, ...]
    size: int

    @property
    def token_bytes(self) -> int:
        """Bytes a token adds while every layer keeps it."""
        return sum(self.elements) * self.size

    def sequence_bytes(self, context: int) -> int:
        """Return what a sequence holds, and what one of its steps reads.

        Args:
            context: tokens of the sequence.
        """
        return self.size * sum(
            elements * min(context, window or context)
            for elements, window in zip(self.elements, self.windows, strict=True)
        )


def read_cache(
    modules: Iterable[Module], text: Mapping[str, Any], *, size: int, ranks: int
) -> Cache:
    """Return the cache of a model, from the outputs of its key and value layers.

    Where their weights are quantized and headers do not tell, the configuration does.

    Args:
        modules: of the model.
        text: configuration of the language model.
        size: bytes of an element.
        ranks: tensor-parallel ranks.

    Raises:
        ConfigError: if neither tells.
    """
    parents: dict[str, dict[str, Module]] = {}
    for module in modules:
        if module.role is Role.LINEAR:
            parents.setdefault(module.parent, {})[module.last] = module
    layers = (_of_layer(children, text) for children in parents.values())
    whole = [found for found in layers if found]
    pairs = text.get("num_key_value_heads") or text.get("num_attention_heads")
    latent = any(_LATENT in children for children in parents.values())
    ours = tuple(_on_rank(x, 1 if latent else ranks, pairs) for x in whole)
    return Cache(ours, _windows(text, len(ours)), size)


def _of_layer(children: Mapping[str, Module], text: Mapping[str, Any]) -> int:
    """Return elements a token has in the cache of one attention layer; 0 for none."""
    if _LATENT in children:  # MLA: one compressed vector for all heads
        return children[_LATENT].out_features or _latent(text)
    if "k_proj" in children and "v_proj" in children:
        sizes = [children[name].out_features for name in ("k_proj", "v_proj")]
        return sum(sizes) if all(sizes) else _keys_and_values(text)
    fused = next((children[name] for name in _FUSED if name in children), None)
    output = next((children[name] for name in _OUTPUT if name in children), None)
    if fused is None or output is None:
        return 0
    if not (fused.out_features and output.in_features):
        return _keys_and_values(text)
    return fused.out_features - output.in_features


def _keys_and_values(text: Mapping[str, Any]) -> int:
    """Return what heads of keys and values make for one token."""
    heads = "num_attention_heads"
    pairs = text.get("num_key_value_heads")
    if pairs is None and not any(key.startswith("multi_query") for key in text):
        pairs = text.get(heads)
    size = text.get("head_dim")
    if size is None:
        size = _known(text.get("hidden_size"), "hidden_size")
        size //= _known(text.get(heads), heads)
    return 2 * _known(pairs, "num_key_value_heads") * _known(size, "head_dim")


def _latent(text: Mapping[str, Any]) -> int:
    """Return the compressed vector of MLA, and the part of a key with a position."""
    names = ("kv_lora_rank", "qk_rope_head_dim")
    return sum(_known(text.get(name), name) for name in names)


def _known(value: object, name: str) -> int:
    if isinstance(value, int) and value > 0:
        return value
    raise ConfigError(
        "The KV cache is not known: keys and values are quantized, so headers do not "
        f"tell their shape, and {name} of config.json is {value!r}. Expected a "
        "number above 0: add it to config.json."
    )


def _on_rank(elements: int, ranks: int, pairs: int | None) -> int:
    if not pairs or pairs % ranks == 0:
        return elements // ranks
    return elements // pairs * -(-pairs // ranks)


def _windows(text: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    window = text.get("sliding_window")
    if not window or text.get("use_sliding_window") is False:
        return (None,) * layers
    types = [x for x in text.get("layer_types") or () if "linear" not in str(x)]
    if len(types) == layers:
        return tuple(window if "sliding" in str(x) else None for x in types)
    every = text.get("sliding_window_pattern") or _EVERY.get(
        str(text.get("model_type"))
    )
    if every:
        return tuple(window if (i + 1) % every else None for i in range(layers))
    return (window,) * layers


def states_beside(text: Mapping[str, Any]) -> bool:
    """Return whether layers keep a state that is no cache of keys and values."""
    types = text.get("layer_types") or ()
    named = any(key.startswith(("mamba", "ssm", "linear_conv")) for key in text)
    return named or any("linear" in str(x) or "mamba" in str(x) for x in types)
