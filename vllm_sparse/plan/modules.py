"""Tensors of a model by what a decoding step does with them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from nmsparse.packed_manifest import BITMASK, VALUES
from nmsparse.targets import NEVER_TARGETS, best_match
from vllm_sparse.plan.stored import Stored

# Bytes of an element, by the names of safetensors; of others, the number in the name.
_BITS = re.compile(r"\d+")
_FLOATS = ("BF16", "F16", "F32", "F64")
# Types that hold one element each; other integers hold several, in shapes of their own.
_WHOLE = (*_FLOATS, "I8")
# What bitsandbytes stores under the name of a weight.
_STATE = re.compile(r"(.+)\.(weight\.(?:absmax|quant_map|nested_\w+|quant_state\..+))$")
_EMBEDDING = re.compile(r"(.*\.)?(embed\w*|w[tp]e|word_embeddings\w*|tok_embeddings)$")
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out)$")
_EXPERTS = re.compile(r"(.*\.)?experts(\..*)?$")
# Drafts that only speculative decoding loads.
_DRAFT = re.compile(r"(model\.)?mtp\.")
_TRANSPOSED = ("gpt2", "openai-gpt")  # Conv1D: [K, O]
_CONV1D = re.compile(r".*\.(c_attn|c_proj|c_fc)$")
# Parts of a weight that some method quantized, without a plain ``weight``.
_QUANTIZED = ("qweight", "weight_packed", "weight_quantized", "blocks")


class Role(str, Enum):
    """What a step does with a module."""

    LINEAR = "linear"
    HEAD = "head"
    EMBEDDING = "embedding"
    EXPERTS = "experts"
    TOWER = "tower"
    DRAFT = "draft"
    OTHER = "other"


@dataclass(slots=True)
class Module:
    """The tensors of one module.

    Attributes:
        name: of the module.
        role: what a step does with it.
        out_features: O of its weight; 0 if its headers do not tell.
        in_features: K of its weight; 0 likewise.
        nbytes: of the weight when it is served dense, or as quantized.
        elements: of the weight; 0 if its headers do not tell.
        beside: bytes of other tensors: biases, norms, sinks.
        others: their elements.
        quantized: whether the weight has another type than the activations.
        zeros: share of zeros of a packed weight; None if not known.
    """

    name: str
    role: Role
    out_features: int = 0
    in_features: int = 0
    nbytes: float = 0
    elements: int = 0
    beside: float = 0
    others: int = 0
    quantized: bool = False
    zeros: float | None = None
    _values: int = field(default=0, repr=False)

    @property
    def parent(self) -> str:
        """Name up to the last dot, with it."""
        head, dot, _ = self.name.rpartition(".")
        return head + dot

    @property
    def last(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


def read_modules(stored: Stored, size: int) -> list[Module]:
    """Return the modules of a model, in the order of their tensors.

    Args:
        stored: the model.
        size: bytes of an element of the type it is served in: floats are converted.
    """
    grouped: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, about in stored.tensors.items():
        state = _STATE.match(name)
        module, leaf = state.groups() if state else _split(name)
        grouped.setdefault(module, {})[leaf] = about
    found = [_module(name, leaves, stored, size) for name, leaves in grouped.items()]
    return list(_without_tied_head(found, stored))


def _split(name: str) -> tuple[str, str]:
    """Return the module a tensor belongs to, and the tensor's own name."""
    module, _, leaf = name.rpartition(".")
    return module, leaf


def _module(
    name: str,
    leaves: Mapping[str, tuple[str, tuple[int, ...]]],
    stored: Stored,
    size: int,
) -> Module:
    module = Module(name, _role(name, leaves))
    bitmask, values = BITMASK.removeprefix("."), VALUES.removeprefix(".")
    packed = bitmask in leaves and values in leaves
    if packed:
        _count_packed(module, leaves[values], stored, size)
    for leaf, (dtype, shape) in leaves.items():
        if packed and leaf in (bitmask, values):
            continue
        elements = math.prod(shape)
        if leaf == "bias" or (len(shape) < 2 and not _has_quantized(leaves)):
            module.beside += elements * _size(dtype, size)
            module.others += elements
        else:
            _count_weight(module, leaf, dtype, shape, size, stored)
    return module


def _count_weight(
    module: Module,
    leaf: str,
    dtype: str,
    shape: tuple[int, ...],
    size: int,
    stored: Stored,
) -> None:
    """Add a tensor of the weight, or beside it: scales, zero points, indices."""
    plain = dtype in _FLOATS
    # Scales stay what they are; dense floats become the type of the activations.
    scale = any(part in leaf for part in ("scale", "zero", "SCB", "weight."))
    whole = dtype in _WHOLE or dtype.startswith("F8_")
    elements = math.prod(shape)
    stored_size = size if plain and not scale else _size(dtype, None)
    module.nbytes += elements * stored_size
    module.quantized |= not plain and leaf != "bias"
    if leaf == "weight" and len(shape) == 2 and whole:
        first, second = shape
        conv1d = stored.text.get("model_type") in _TRANSPOSED
        if conv1d and _CONV1D.match(module.name):
            first, second = second, first
        module.out_features, module.in_features = first, second
    if not scale and (leaf == "weight" or plain) and whole:
        module.elements += elements


def _count_packed(
    module: Module, values: tuple[str, tuple[int, ...]], stored: Stored, size: int
) -> None:
    """Count a weight that this project packed as the dense one it stands for."""
    about = stored.config.get("quantization_config") or {}
    out_features, in_features = about["modules"][module.name]
    module.out_features, module.in_features = out_features, in_features
    module.elements = out_features * in_features
    module.nbytes = module.elements * size
    module.zeros = 1 - math.prod(values[1]) / module.elements


def _role(name: str, leaves: Mapping[str, tuple[str, tuple[int, ...]]]) -> Role:
    if _DRAFT.match(name):
        return Role.DRAFT
    if _is_tower(name):
        return Role.TOWER
    if _EXPERTS.match(name):
        return Role.EXPERTS
    if _HEAD.match(name):
        return Role.HEAD
    if _EMBEDDING.match(name):
        return Role.EMBEDDING
    weight = leaves.get("weight")
    two = weight is not None and len(weight[1]) == 2
    if two or _has_quantized(leaves) or BITMASK.removeprefix(".") in leaves:
        return Role.LINEAR
    return Role.OTHER


def _is_tower(name: str) -> bool:
    """Return whether a module belongs to an encoder, a tower or a projector.

    Other names that no expression may sparsify are those of parts of the decoder.
    """
    winner = best_match(NEVER_TARGETS, name, ())[1]
    return bool(winner) and not any(
        part in winner for part in ("lm_head", "router", "experts", "kv_b_proj")
    )


def _has_quantized(leaves: Mapping[str, tuple[str, tuple[int, ...]]]) -> bool:
    other = "weight" in leaves and leaves["weight"][0] not in _FLOATS
    return other or any(leaf in leaves for leaf in _QUANTIZED)


def _size(dtype: str, served: int | None) -> float:
    """Return bytes of an element; floats as they are served if that is given."""
    if served is not None and dtype in _FLOATS:
        return served
    bits = _BITS.search(dtype)
    return int(bits[0]) / 8 if bits else 1


def _without_tied_head(found: list[Module], stored: Stored) -> Iterator[Module]:
    """Yield modules, without a head that files hold although it is the embedding."""
    key = "tie_word_embeddings"
    tied = stored.text.get(key, stored.config.get(key))
    has_embedding = any(x.role is Role.EMBEDDING for x in found)
    for module in found:
        if not (module.role is Role.HEAD and tied and has_embedding):
            yield module
