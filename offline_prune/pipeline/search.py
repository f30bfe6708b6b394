"""Settings found on held-out calibration text: never on what is reported."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from offline_prune.allocators.atp import Atp

logger = logging.getLogger(__name__)

Loss = Callable[[Sequence[float]], float]


def search_atp(
    allocator: Atp, *, sizes: Sequence[int], sparsity: float, loss: Loss
) -> tuple[Atp, dict[str, float]]:
    """Return ATP with the slope whose pruned model has the least held-out loss.

    Args:
        allocator: with ``beta`` None.
        sizes: weights of every block.
        sparsity: of the whole model.
        loss: prunes with these shares and returns the held-out loss per token.

    Returns:
        The allocator with its slope, and the perplexity of every slope tried.
    """
    tried: dict[str, float] = {}
    best, least = 0.0, math.inf
    # 0 as well: the uniform allocation, which no search should lose to.
    for beta in (0.0, *allocator.slopes(sparsity, len(sizes))):
        slope = allocator.with_beta(beta)
        shares = slope.ratios([0.0] * len(sizes), sizes=sizes, sparsity=sparsity)
        found = loss(shares)
        tried[f"{beta:.6g}"] = math.exp(min(found, 700.0))
        logger.info("ATP beta %.6g: held-out perplexity %.4g", beta, math.exp(found))
        if found < least:
            best, least = beta, found
    return allocator.with_beta(best), tried
