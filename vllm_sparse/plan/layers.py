"""Linear layers as vLLM fuses and shards them, and what the plugin does with each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from nmsparse.config import ActivationSparsity, ConfigError, Group, SparsityConfig
from nmsparse.packed_manifest import is_packable
from nmsparse.pattern import Pattern
from nmsparse.resolve import Resolver, require_sparse_layers
from nmsparse.targets import FUSED
from vllm_sparse.checks import check_fits
from vllm_sparse.plan.modules import Module, Role

# Layers whose inputs tensor parallelism splits; of others it splits outputs.
ROW_PARALLEL = (
    "o_proj",
    "down_proj",
    "out_proj",
    "fc2",
    "c_proj",
    "fc_out",
    "dense",
    "dense_4h_to_h",
)
# Layers that every rank holds whole.
_REPLICATED = ("kv_a_proj_with_mqa", "q_a_proj", "gate", "router", "shared_expert_gate")
_KEYS_VALUES = ("k_proj", "v_proj")
# What no kernel of the plugin takes, by device: such layers read every weight.
_NO_KERNEL = {
    "gpu": ("clact", "r_sparse", "d_pts_median"),
    "cpu": ("clact",),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer, whole or as one rank holds it.

    Attributes:
        names: the fused name first, then those of its parts.
        kind: the last part of the name without ``_proj``.
        in_features: K; 0 for a quantized weight whose headers do not tell.
        outputs: O of every part; 0 likewise.
        nbytes: of the weight, dense or as quantized.
        elements: of the weight.
        quantized: whether the plugin leaves the weight to vLLM.
        pattern: of the activation; None if dense.
        zeros: share of zeros of the weight, if it can be held packed; else 0.
        no_kernel: why a sparse activation saves nothing; empty if it does.
    """

    names: tuple[str, ...]
    kind: str
    in_features: int
    outputs: tuple[int, ...]
    nbytes: float
    elements: int
    quantized: bool = False
    pattern: Pattern | None = None
    zeros: float = 0.0
    no_kernel: str = ""

    @property
    def out_features(self) -> int:
        """O."""
        return sum(self.outputs)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the weight."""
        return round(self.nbytes)

    @property
    def last(self) -> str:
        """The last part of the name."""
        return self.names[0].rpartition(".")[2]

    @property
    def row_parallel(self) -> bool:
        """Whether tensor parallelism splits K."""
        return self.last in ROW_PARALLEL


def fused_layers(modules: Iterable[Module]) -> Iterator[Layer]:
    """Yield the linear layers, fused as vLLM does."""
    parents: dict[str, dict[str, Module]] = {}
    for module in modules:
        if module.role is Role.LINEAR:
            parents.setdefault(module.parent, {})[module.last] = module
    for parent, children in parents.items():
        for fused, parts in FUSED.items():
            if all(part in children for part in parts):
                taken = [children.pop(part) for part in parts]
                yield _layer(parent + fused, taken)
        for module in children.values():
            yield _layer(module.name, [module])


def _layer(name: str, parts: list[Module]) -> Layer:
    packed = [module.zeros for module in parts if module.zeros is not None]
    elements = sum(module.elements for module in parts)
    zeros = 0.0
    if len(packed) == len(parts):
        nonzero = sum((1 - (m.zeros or 0)) * m.elements for m in parts)
        zeros = 1 - nonzero / elements
    own = () if len(parts) == 1 else tuple(module.name for module in parts)
    return Layer(
        (name, *own),
        name.rpartition(".")[2].removesuffix("_proj"),
        parts[0].in_features,
        tuple(module.out_features for module in parts),
        sum(module.nbytes for module in parts),
        elements,
        quantized=any(module.quantized for module in parts),
        zeros=zeros,
    )


def treated_layers(
    layers: Iterable[Layer],
    config: SparsityConfig,
    *,
    zeros: float | None,
    device: str,
    ranks: int,
) -> list[Layer]:
    """Return the layers with what a configuration says about each.

    Args:
        layers: of the model, whole.
        config: what is sparse.
        zeros: share of zeros of every packable weight; None for what the configuration
            records, or a packed checkpoint has.
        device: ``gpu`` or ``cpu``.
        ranks: tensor-parallel ranks.

    Raises:
        ConfigError: naming the layer or target that does not fit.
    """
    resolver = Resolver(config)
    found = []
    for layer in layers:
        group = resolver.resolve(layer.names, _classes(layer)).group
        activation = group.activation if group else None
        found.append(
            replace(
                layer,
                pattern=_pattern(layer, activation, ranks),
                zeros=_zeros(layer, group, zeros),
                no_kernel=_no_kernel(layer, activation, device),
            )
        )
    resolver.check_targets()
    sparse = sum(layer.pattern is not None for layer in found)
    require_sparse_layers(config, sparse, len(found))
    return found


def _classes(layer: Layer) -> tuple[str, ...]:
    """Return class names that vLLM may use, which targets may name."""
    base = ("Linear", "LinearBase")
    if layer.last == "qkv_proj":
        return (*base, "ColumnParallelLinear", "QKVParallelLinear")
    if len(layer.names) > 1:
        return (*base, "ColumnParallelLinear", "MergedColumnParallelLinear")
    if layer.row_parallel:
        return (*base, "RowParallelLinear")
    return (*base, "ColumnParallelLinear", "ReplicatedLinear")


def _pattern(
    layer: Layer, activation: ActivationSparsity | None, ranks: int
) -> Pattern | None:
    if activation is None:
        return None
    if layer.in_features:
        shards = ranks if layer.row_parallel else 1
        if layer.in_features % shards == 0:  # or the layer cannot be split at all
            check_fits(layer.names[0], activation.pattern, layer.in_features, shards)
    return activation.pattern


def _zeros(layer: Layer, group: Group | None, given: float | None) -> float:
    if layer.quantized or not is_packable(layer.names[0]):
        return 0.0
    if given is not None:
        return given
    record = group.weight if group else None
    if layer.zeros or record is None:
        return layer.zeros
    return record.pattern.sparsity if record.sparsity is None else record.sparsity


def _no_kernel(layer: Layer, activation: ActivationSparsity | None, device: str) -> str:
    if activation is None:
        return ""
    if layer.quantized:
        return "quantized"
    used = (activation.criterion, *activation.mitigation)
    return next((name for name in used if name in _NO_KERNEL[device]), "")


def shard(layer: Layer, ranks: int, pairs: int | None) -> Layer:
    """Return a layer as one of several tensor-parallel ranks holds it.

    Args:
        layer: the whole one.
        ranks: how many.
        pairs: heads of keys and values; None if not known. Where there are fewer than
            ranks, every rank has one.

    Raises:
        ConfigError: if the layer cannot be split.
    """
    if ranks == 1 or layer.last in _REPLICATED:
        return layer
    if not layer.in_features:  # quantized: bytes alone are known
        return replace(layer, nbytes=layer.nbytes / ranks)
    size = layer.in_features if layer.row_parallel else 0
    if layer.row_parallel:
        _check_split(layer, size, ranks)
        inputs, outputs = size // ranks, layer.outputs
    else:
        inputs = layer.in_features
        parts = layer.names[1:] or layer.names
        outputs = tuple(
            _split(layer, part, size, ranks, pairs)
            for part, size in zip(parts, layer.outputs, strict=True)
        )
    share = inputs * sum(outputs) / (layer.in_features * layer.out_features)
    return replace(
        layer,
        in_features=inputs,
        outputs=outputs,
        nbytes=layer.nbytes * share,
        elements=round(layer.elements * share),
    )


def _split(layer: Layer, part: str, size: int, ranks: int, pairs: int | None) -> int:
    if pairs and pairs < ranks and part.endswith(_KEYS_VALUES):
        return size // pairs
    _check_split(layer, size, ranks)
    return size // ranks


def _check_split(layer: Layer, size: int, ranks: int) -> None:
    if size % ranks:
        raise ConfigError(
            f"{layer.names[0]}: {size} channels cannot be split over {ranks} ranks. "
            "Expected a --tensor-parallel that divides them."
        )
