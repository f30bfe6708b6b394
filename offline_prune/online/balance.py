"""Balanced groups: every group of M gets channels of all energies.

Channels that lie side by side may all be large, and N:M then drops values that are
larger than what other groups keep. Ranked by energy and dealt out like cards, back and
forth, all groups hold about the same energy, which brings N:M close to a choice over
whole rows. Our formulation; the idea of dealing channels out is that of RIA's
permutation (OpenReview Tr0lPx9woF), applied to activations.
"""

from __future__ import annotations

import torch


def balanced_groups(energy: torch.Tensor, m: int) -> torch.Tensor:
    """Return the order of channels in which consecutive groups of M are balanced.

    Args:
        energy: ``[K]`` mean squared input of every channel.
        m: M; divides K.

    Returns:
        ``[K]`` int64, a permutation of the channels; within a group they ascend, so
        that ties are broken as in their own order.

    Raises:
        ValueError: if M does not divide K.
    """
    channels = len(energy)
    if m < 1 or channels % m:
        raise ValueError(
            f"Balanced groups: {channels} channels cannot be dealt out to groups of "
            f"{m}. Expected an M that divides them."
        )
    ranked = torch.argsort(energy.double(), descending=True, stable=True)
    rounds = ranked.view(m, channels // m).clone()
    # Back and forth: the group that got the best of one round gets the least of the
    # next.
    rounds[1::2] = rounds[1::2].flip(1)
    groups: torch.Tensor = rounds.t().sort(dim=1).values.reshape(-1)
    return groups
