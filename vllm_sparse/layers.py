"""Seam 1: out-of-tree subclasses of vLLM's five linear classes.

vLLM instantiates these instead of its own classes of the same name. Each runs the
in-tree constructor unchanged and then, only if the engine's configuration asks for
sparsity, wraps ``quant_method``. Weights, loaders, LoRA and quantization stay vLLM's.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)


class _LikeInTree(type):
    """``isinstance`` with one of our classes answers as with the class it replaces.

    vLLM's LoRA code asks ``isinstance(layer, <registered class>)`` also about in-tree
    subclasses that are not replaced; they must get the answer they get without us.
    """

    def __instancecheck__(cls, instance: object) -> bool:
        replaced: type = cls.__mro__[2]
        return isinstance(instance, replaced)


class _Attach:
    """Mixin: the in-tree constructor, then the session decides about the layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Here, so that processes that build no model do not load all of it.
        from vllm_sparse.engines import current_session

        session = current_session()
        if session is not None and isinstance(self, LinearBase):
            session.attach(self)


class SparseColumnParallelLinear(_Attach, ColumnParallelLinear, metaclass=_LikeInTree):
    """Column-parallel linear with a sparsifiable input."""


class SparseMergedColumnParallelLinear(
    _Attach, MergedColumnParallelLinear, metaclass=_LikeInTree
):
    """Fused column-parallel linear (``gate_up_proj``): one input, one selection."""


class SparseQKVParallelLinear(_Attach, QKVParallelLinear, metaclass=_LikeInTree):
    """Fused ``qkv_proj``: one input, one selection for q, k and v."""


class SparseRowParallelLinear(_Attach, RowParallelLinear, metaclass=_LikeInTree):
    """Row-parallel linear: its input is already this rank's shard of K."""


class SparseReplicatedLinear(_Attach, ReplicatedLinear, metaclass=_LikeInTree):
    """Replicated linear with a sparsifiable input."""


LAYERS: dict[str, type] = {
    "ColumnParallelLinear": SparseColumnParallelLinear,
    "MergedColumnParallelLinear": SparseMergedColumnParallelLinear,
    "QKVParallelLinear": SparseQKVParallelLinear,
    "RowParallelLinear": SparseRowParallelLinear,
    "ReplicatedLinear": SparseReplicatedLinear,
}


def register_layers() -> list[str]:
    """Register the classes once; return the names another plugin already owns."""
    taken = []
    for name, layer in LAYERS.items():
        owner = op_registry_oot.get(name)
        if owner is None:
            PluggableLayer.register_oot(layer, name=name)
        elif owner is not layer:
            taken.append(name)
    return taken
