"""Criteria of online sparsity: how an activation is scored. One file a criterion.

A criterion gives a factor per channel, and the score of channel k is ``|u_k|`` times
it. Listing names imports nothing. See CONTRIBUTING.md, "Add a criterion".
"""

from __future__ import annotations

from nmsparse.criteria.base import Criterion
from nmsparse.registry import Registry

__all__ = ["DEFAULT_CRITERION", "Criterion", "criteria"]

DEFAULT_CRITERION = "magnitude"

criteria: Registry[Criterion] = Registry("criterion")
criteria.add("magnitude", "nmsparse.criteria.magnitude:magnitude")
criteria.add("clact", "nmsparse.criteria.clact:clact")
criteria.add("amber_pruner", "nmsparse.criteria.amber_pruner:amber_pruner")
criteria.add("wina", "nmsparse.criteria.wina:wina")
criteria.add("second_order", "nmsparse.criteria.second_order:second_order")
