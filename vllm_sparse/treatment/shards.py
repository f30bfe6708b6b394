"""The parameters of one layer on this tensor-parallel rank.

What belongs to input channels is sliced as K is; what belongs to outputs goes through
the layer's own loader, like a bias, so that replicated and padded heads come out right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nmsparse.config import ConfigError
from nmsparse.parameters import NO_PARAMETERS, Parameters, fuse
from nmsparse.pattern import Pattern
from vllm_sparse.packed.shards import part_sizes

if TYPE_CHECKING:
    from vllm.model_executor.layers.linear import LinearBase

    from vllm_sparse.treatment.source import Part


@dataclass(frozen=True, slots=True)
class Split:
    """How tensor parallelism splits one layer.

    Attributes:
        rank: of this process.
        ranks: processes that share the layer.
        k_local: K on this rank.
        o_local: O on this rank.
        k_sharded: whether ranks hold different input channels (row parallel).
        o_sharded: whether ranks hold different outputs (column parallel).
    """

    rank: int
    ranks: int
    k_local: int
    o_local: int
    k_sharded: bool
    o_sharded: bool

    @classmethod
    def of(cls, layer: LinearBase) -> Split:
        """Describe a layer of vLLM."""
        k_local = getattr(layer, "input_size_per_partition", layer.input_size)
        o_local = getattr(layer, "output_size_per_partition", layer.output_size)
        return cls(
            rank=getattr(layer, "tp_rank", 0),
            ranks=getattr(layer, "tp_size", 1),
            k_local=k_local,
            o_local=o_local,
            k_sharded=k_local != layer.input_size,
            o_sharded=o_local != layer.output_size,
        )

    @property
    def adds_once(self) -> bool:
        """Whether this rank adds what must be added once over ranks."""
        return self.rank == 0 or not self.k_sharded

    def channels(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of ``[..., K]``."""
        if not self.k_sharded:
            return tensor
        return tensor.narrow(-1, self.rank * self.k_local, self.k_local)


def local_parameters(
    layer: LinearBase,
    parts: Mapping[str, Part],
    *,
    pattern: Pattern,
    device: torch.device,
) -> Parameters:
    """Fuse the parameters of a layer's parts, and return this rank's share.

    Args:
        layer: the layer.
        parts: by module name, what the file holds for it, or for each of its parts.
        pattern: the activation pattern.
        device: where the layer runs.

    Raises:
        ConfigError: naming the layer, if they do not fit it.
    """
    if not parts:
        return NO_PARAMETERS
    split, outputs = Split.of(layer), sum(part_sizes(layer).values())
    try:
        whole = fuse(list(parts.values()), names=list(parts))
        whole.check(layer.input_size, outputs)
    except ValueError as error:
        raise ConfigError(
            f"{layer.prefix}: its parameters do not fit: {error} Run `offline-prune "
            "calibrate` for this model."
        ) from None
    groups = whole.channel_groups
    if groups is not None:
        groups = _local_groups(layer.prefix, groups, split, pattern)

    def inputs(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else split.channels(tensor).contiguous()

    def output(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else shard_outputs(layer, tensor)

    found = Parameters(
        factor=inputs(whole.factor),
        channel_shift=inputs(whole.channel_shift),
        output_scale=output(whole.output_scale),
        output_shift=output(whole.output_shift),
        low_rank_in=inputs(whole.low_rank_in),
        low_rank_out=output(whole.low_rank_out),
        channel_groups=groups,
    )
    # Low-rank matrices multiply beside the weight, in its dtype.
    return found.to(device, dtype=layer.params_dtype)


def shard_outputs(layer: LinearBase, tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's rows of ``[O, ...]``, as the layer's loader splits a bias.

    Args:
        layer: the layer.
        tensor: rows of all parts and ranks, as the parts follow each other.
    """
    from vllm.model_executor.utils import set_weight_attrs

    outputs = getattr(layer, "output_size_per_partition", layer.output_size)
    shape = (outputs, *tensor.shape[1:])
    local: Any = torch.nn.Parameter(
        torch.empty(shape, dtype=tensor.dtype, device=tensor.device),
        requires_grad=False,
    )
    set_weight_attrs(local, {"output_dim": 0})
    # Without a shard id a loader takes all parts, fused.
    layer.weight_loader(local, tensor)
    result: torch.Tensor = local.data
    return result


def _local_groups(
    name: str, groups: torch.Tensor, split: Split, pattern: Pattern
) -> torch.Tensor:
    """Return the channel groups of this rank, counted from its first channel.

    Raises:
        ConfigError: if a group has channels of several ranks.
    """
    if not split.k_sharded:
        return groups
    _, size = pattern.group(split.k_local)
    owners = (groups // split.k_local).view(-1, size)
    # All ranks look at all groups, so that they refuse alike.
    expected = torch.arange(split.ranks).repeat_interleave(split.k_local // size)
    if not bool((owners.cpu() == expected[:, None]).all()):
        raise ConfigError(
            f"{name}: its balanced groups (channel_groups) take channels of several "
            f"ranks, of which each sees {split.k_local} (tp={split.ranks}). Expected "
            "groups inside of shards: calibrate with consecutive groups, or use "
            "--tensor-parallel-size 1."
        )
    return split.channels(groups) - split.rank * split.k_local
