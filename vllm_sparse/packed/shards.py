"""The weights of one linear layer as they arrive: packed or dense, shard by shard.

vLLM fuses ``q_proj``, ``k_proj`` and ``v_proj`` and splits weights over ranks. Every
layer knows how to do that to a dense weight, so a packed shard is made dense as soon as
both of its tensors are there, and given to the layer's own loader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from vllm.model_executor.layers.linear import (
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
)

from nmsparse.packed_format import decode
from nmsparse.packed_manifest import BITMASK, VALUES, WEIGHT, PackedFormatError
from vllm_sparse.names import with_parts

# A part of a fused layer as vLLM names it; None for a layer with one part.
Part = str | int | None


class Shards:
    """Take the shards of one layer, and say when the last one has arrived.

    Attributes:
        load_dense: the layer's own loader: ``(parameter, tensor[, shard id])``.
        packed: number of packed shards that were loaded.

    Args:
        layer: the layer.
        load_dense: its own loader.
        packed_modules: the model's names of fused layers and their parts.
        on_complete: called once, when every shard is in ``layer.weight``.
    """

    def __init__(
        self,
        layer: LinearBase,
        load_dense: Callable[..., None],
        packed_modules: Mapping[str, Sequence[str]],
        on_complete: Callable[[], None],
    ) -> None:
        self._layer = layer
        self.load_dense = load_dense
        self._on_complete = on_complete
        self._sizes = part_sizes(layer)
        _, *parts = with_parts(layer.prefix, packed_modules)
        self._names = (
            dict(zip(self._sizes, parts, strict=True))
            if len(parts) == len(self._sizes)
            else {}
        )
        self._waiting: dict[Part, tuple[str, torch.Tensor]] = {}
        self._arrived: set[Part] = set()
        self.packed = 0

    def dense(self, parameter: Any, loaded: torch.Tensor, *shard: Any) -> None:
        """Load a dense weight: the layer's own loader, and note that it came."""
        self.load_dense(parameter, loaded, *shard)
        self._note(shard)

    def half(
        self, suffix: str, parameter: Any, loaded: torch.Tensor, *shard: Any
    ) -> None:
        """Take one of the two tensors of a packed shard; load it if it is the second.

        Args:
            suffix: which one, as in the file.
            parameter: the placeholder it was loaded for.
            loaded: the tensor; it may lie in memory that is used again.
            *shard: vLLM's shard id, if it gave one.

        Raises:
            PackedFormatError: naming the tensor, if the two do not make a weight of
                this layer.
        """
        key = shard[0] if shard else None
        if key not in self._waiting:
            self._waiting[key] = suffix, loaded.clone()
            return
        name = self._name(key)
        first, other = self._waiting.pop(key)
        if first == suffix:
            raise PackedFormatError(
                f"{name}{suffix} arrived twice. Expected it once: the folder has "
                "weight files that do not belong together."
            )
        pair = {first: other, suffix: loaded}
        rows = sum(self._sizes[part] for part in self._parts(key))
        shape = (rows, self._layer.input_size)
        weight = decode(name, pair[BITMASK], pair[VALUES], shape=shape)
        self.packed += 1
        self.dense(self._layer.weight, weight.unpack(), *shard)

    def finish(self) -> None:
        """Refuse a layer that is not complete. Call it when all weights were read.

        Raises:
            PackedFormatError: naming the tensor that is missing.
        """
        for key, (suffix, _) in self._waiting.items():
            lacks = VALUES if suffix == BITMASK else BITMASK
            raise self._missing(key, lacks)
        for key in self._sizes:
            if key not in self._arrived:
                raise self._missing(key, BITMASK if self.packed else WEIGHT)

    def _note(self, shard: tuple[Any, ...]) -> None:
        """Note that a shard is in the weight; tell if it was the last."""
        parts = self._parts(shard[0] if shard else None)
        if self.packed and not self._arrived.isdisjoint(parts):
            raise PackedFormatError(
                f"{self._name(parts[0])}{WEIGHT} arrived twice. Expected it once, "
                "dense or packed: the folder has files that do not belong together."
            )
        was_complete = self._is_complete
        self._arrived.update(parts)
        if self._is_complete and not was_complete:
            self._on_complete()

    @property
    def _is_complete(self) -> bool:
        return self._arrived.issuperset(self._sizes)

    def _parts(self, key: Any) -> list[Part]:
        """Return the parts of a shard: all, for a layer that is fused in the file."""
        if key is None:
            return list(self._sizes)
        return list(key) if isinstance(key, tuple) else [key]

    def _name(self, key: Any) -> str:
        """Return the name of a shard, as in the file where vLLM's names tell it."""
        name: str = self._names.get(key, self._layer.prefix)
        return name

    def _missing(self, key: Any, suffix: str) -> PackedFormatError:
        return PackedFormatError(
            f"{self._name(key)}{suffix} is missing (for {self._layer.prefix}). "
            "Expected it in the model folder: it is incomplete, copy it again."
        )


def part_sizes(layer: LinearBase) -> dict[Part, int]:
    """Return the parts of a layer and their rows over all ranks, as in the files."""
    if isinstance(layer, QKVParallelLinear):
        # Not output_sizes: they count heads that are replicated over ranks.
        kv_heads, size = layer.total_num_kv_heads, layer.head_size
        value_size = getattr(layer, "v_head_size", size)
        return {
            "q": layer.total_num_heads * size,
            "k": kv_heads * size,
            "v": kv_heads * value_size,
        }
    if isinstance(layer, MergedColumnParallelLinear):
        return dict(enumerate(layer.output_sizes))
    return {None: layer.output_size}
