"""Sums and rows over the processes of torch.distributed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def sum_over(
    buffers: Sequence[torch.Tensor],
    counts: Sequence[int],
    *,
    group: dist.ProcessGroup | None,
) -> list[int]:
    """Sum buffers in place and return the sums of the counts.

    Args:
        buffers: tensors of the same shapes and dtypes on every process.
        counts: integers, as many on every process.
        group: processes that take part; the default group if None.

    Returns:
        The summed counts.
    """
    for buffer in buffers:
        dist.all_reduce(buffer, group=group)
    total = torch.tensor(list(counts), device=buffers[0].device)
    dist.all_reduce(total, group=group)
    return [int(count) for count in total.tolist()]


def gather_rows(
    values: torch.Tensor, owners: torch.Tensor, *, group: dist.ProcessGroup | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return every process's rows, in the order of the ranks.

    Args:
        values: float32 ``[s, K]``; ``s`` may differ between the processes.
        owners: int64 ``[s]``.
        group: processes that take part; the default group if None.

    Returns:
        The pairs of all ranks, on the device of ``values``.
    """
    owners = owners.to(values.device)
    world = dist.get_world_size(group)
    length = torch.tensor([len(values)], device=values.device)
    lengths = [torch.zeros_like(length) for _ in range(world)]
    dist.all_gather(lengths, length, group=group)
    sizes = [int(item) for item in lengths]
    if max(sizes) == 0:
        return []
    # all_gather wants equal shapes.
    padding = max(sizes) - len(values)
    padded = torch.nn.functional.pad(values, (0, 0, 0, padding))
    padded_owners = torch.nn.functional.pad(owners, (0, padding))
    all_values = [torch.empty_like(padded) for _ in range(world)]
    all_owners = [torch.empty_like(padded_owners) for _ in range(world)]
    dist.all_gather(all_values, padded, group=group)
    dist.all_gather(all_owners, padded_owners, group=group)
    return [
        (part[:size], part_owners[:size])
        for part, part_owners, size in zip(all_values, all_owners, sizes, strict=True)
    ]
