"""What a treatment takes from a weight: static factors, row sums, constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nmsparse.config import ConfigError
from nmsparse.criteria import criteria
from nmsparse.criteria.columns import column_squares

if TYPE_CHECKING:
    from vllm.model_executor.layers.linear import LinearBase

    from vllm_sparse.treatment.shards import Split

# Methods that hold a dense ``layer.weight`` until it is processed.
PLAIN = ("UnquantizedLinearMethod", "PackedLinearMethod")
_STORED = (
    "Run `offline-prune calibrate`, which stores the factor in the parameters file, or "
    "choose the criterion magnitude."
)
_ROWS = 1024


def check_factor(name: str, criterion: str, split: Split) -> None:
    """Refuse a factor that no rank can compute from its shard of the weight.

    Raises:
        ConfigError: naming the layer and the remedy.
    """
    if criterion != "wina" and (split.k_sharded or split.o_sharded):
        raise ConfigError(
            f"{name}: criterion {criterion} looks at the whole weight, of which each "
            f"of {split.ranks} ranks has a shard. Expected a stored factor. {_STORED} "
            "--tensor-parallel-size 1 helps too."
        )


def static_factor(
    layer: LinearBase, criterion: str, weight: torch.Tensor, split: Split
) -> torch.Tensor:
    """Return the factor of a layer's channels, alike on all ranks that share them.

    Args:
        layer: the layer.
        criterion: one that needs the weight.
        weight: ``[O, K]`` of this rank, fused.
        split: how ranks share the layer.

    Returns:
        ``[K]`` float32.
    """
    if not split.o_sharded:  # all rows of our channels are here
        factor = criteria.get(criterion).factor(weight)
        assert factor is not None
        return factor
    from vllm.distributed import get_tp_group

    # Squares of row shards add up; heads that several ranks hold count once.
    squares = column_squares(weight, row_weight=_row_weight(layer, weight)).cpu()
    torch.distributed.all_reduce(squares, group=get_tp_group().cpu_group)
    return squares.sqrt().float()


def _row_weight(layer: LinearBase, weight: torch.Tensor) -> torch.Tensor | None:
    """Return ``[O]``: one over the number of ranks that hold a row; None if one."""
    replicas = getattr(layer, "num_kv_head_replicas", 1)
    if replicas == 1:
        return None
    shares = weight.new_full(weight.shape[:1], 1.0 / replicas, dtype=torch.float64)
    shares[: layer.num_heads * layer.head_size] = 1.0
    return shares


def dense_weight(layer: Any, inner: Any, split: Split) -> torch.Tensor | None:
    """Return a weight that is dense before it is processed; None if it is not."""
    weight = getattr(layer, "weight", None)
    if type(inner).__name__ not in PLAIN or not isinstance(weight, torch.Tensor):
        return None
    fits = tuple(weight.shape) == (split.o_local, split.k_local)
    return weight.data if fits and not weight.is_meta else None


def dequantized(layer: Any, inner: Any, criterion: str) -> torch.Tensor:
    """Return a quantized layer's weight as ``[O, K]`` float.

    Raises:
        ConfigError: naming the layer, if its method cannot give it.
    """
    try:
        weight: torch.Tensor = inner.dequantize_weight(layer)
    except NotImplementedError:
        raise ConfigError(
            f"{layer.prefix}: criterion {criterion} needs the weight, which vLLM's "
            f"{type(inner).__name__} does not give back. Expected a stored factor. "
            f"{_STORED}"
        ) from None
    return weight


def row_products(weight: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return ``[n, O]`` float32, products with ``[n, K]`` vectors, summed in float64.

    Args:
        weight: ``[O, K]``. A copy of all of it is not made.
        vectors: float.
    """
    wide = vectors.double()
    parts = [wide @ rows.double().t() for rows in weight.split(_ROWS)]
    return torch.cat(parts, dim=1).float()
