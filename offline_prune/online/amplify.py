"""Errors grow on their way: an early block's counts for more than its cost says.

Final costs see one sparse layer in a dense model. In use, what a layer does wrong
passes through sparse layers as well, and the more blocks follow, the more it is made
worse. Our formulation: the cost of block i of L is multiplied by
``exp(amplification * (1 - i / (L - 1)))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from offline_prune.online.fused import FusedLinear
from offline_prune.online.sensitivity import Costs


def amplified(
    costs: Costs, blocks: Sequence[Sequence[FusedLinear]], amplification: float
) -> Costs:
    """Return costs with the growth of errors in them.

    Args:
        costs: layer to its cost at every level.
        blocks: fused layers of every block.
        amplification: logarithm of what the first block's cost is multiplied by; 0
            changes nothing. The last block's stays as it is.
    """
    last = max(1, len(blocks) - 1)
    grown: Costs = {}
    for index, block in enumerate(blocks):
        factor = math.exp(amplification * (1 - index / last))
        for layer in block:
            grown[layer.name] = [factor * cost for cost in costs[layer.name]]
    return grown
