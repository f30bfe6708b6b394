"""Scorers: how much a weight matters. One file a scorer; listing them loads no torch.

A scorer ranks the weights of one linear, higher stays, and says in which group they are
compared. See CONTRIBUTING.md, "Add a scorer or an allocator".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.registry import Registry

if TYPE_CHECKING:
    from offline_prune.scorers.base import Scorer

DEFAULT_SCORER = "wanda"

scorers: Registry[type[Scorer]] = Registry("scorer")
scorers.add("cvr", "offline_prune.scorers.cvr:Cvr")
scorers.add("magnitude", "offline_prune.scorers.magnitude:Magnitude")
scorers.add("ria", "offline_prune.scorers.ria:Ria")
scorers.add("sparsegpt", "offline_prune.scorers.sparsegpt:SparseGpt")
scorers.add("wanda", "offline_prune.scorers.wanda:Wanda")
