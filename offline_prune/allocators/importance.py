"""Wanda's scores of a whole block, which OWL and DLP summarise."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from offline_prune.allocators.base import BlockView
from offline_prune.errors import InputError


def check_finite(name: str, values: torch.Tensor, *, what: str) -> None:
    """Refuse values that are not finite.

    Raises:
        InputError: naming the linear and how many values.
    """
    bad = int((~values.isfinite()).sum())
    if bad:
        raise InputError(
            f"{name}: {bad} of {values.numel()} values of its {what} are NaN or "
            "infinite. Expected finite numbers: check the checkpoint and its dtype "
            "(float16 overflows; load it as bfloat16 or float32)."
        )


def block_scores(block: BlockView) -> Iterator[torch.Tensor]:
    """Yield ``|W_ij| * ||X_j||`` of the block's linears, one after the other.

    One at a time, because a block of a large model has a billion of them. A linear
    that no calibration token reached (an expert) is left out: its scores are all 0
    and say nothing.

    Yields:
        float32 ``[O, K]``, at least 0.

    Raises:
        InputError: if a weight or a norm is not finite.
        KeyError: if the statistics of a linear are missing.
    """
    for name, weight in block.weights.items():
        statistics = block.statistics[name]
        if statistics.tokens == 0 or weight.numel() == 0:
            continue
        norm = statistics.norm.to(weight.device)
        check_finite(name, norm, what="input norms")
        scores = weight.float().abs() * norm
        check_finite(name, scores, what="weight")
        yield scores
