"""Allocators: how the budget is split over the decoder blocks. One file an allocator.

An allocator measures every block of the dense model and proposes a share of weights to
remove for each; ``offline_prune.budget`` then restores the budget. A correction changes
what an allocator proposed. See CONTRIBUTING.md, "Add a scorer or an allocator".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.registry import Registry

if TYPE_CHECKING:
    from offline_prune.allocators.absorption import Absorption
    from offline_prune.allocators.base import Allocator

DEFAULT_ALLOCATOR = "uniform"

allocators: Registry[type[Allocator]] = Registry("allocator")
allocators.add("uniform", "offline_prune.allocators.uniform:Uniform")
allocators.add("owl", "offline_prune.allocators.owl:Owl")
allocators.add("alpha_pruning", "offline_prune.allocators.alpha_pruning:AlphaPruning")
allocators.add("dlp", "offline_prune.allocators.dlp:Dlp")
allocators.add("atp", "offline_prune.allocators.atp:Atp")

corrections: Registry[type[Absorption]] = Registry("correction")
corrections.add("absorption", "offline_prune.allocators.absorption:Absorption")
