"""Criteria of online sparsity: how an activation is scored. One file a criterion.

A criterion is a function ``score(x) -> scores`` on ``[..., K]`` tensors; higher scores
are kept. No score has its sign bit set (a NaN neither), so that they need no sign
handling when they are ordered. See CONTRIBUTING.md, "Add a criterion".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nmsparse.registry import Registry

if TYPE_CHECKING:
    import torch

    Criterion = Callable[[torch.Tensor], torch.Tensor]

DEFAULT_CRITERION = "magnitude"

criteria: Registry[Criterion] = Registry("criterion")
criteria.add("magnitude", "nmsparse.criteria.magnitude:score")
